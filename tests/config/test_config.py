"""Configs: YAML and --set become a frozen model, or every mistake is reported at once."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from t2i.config import explain
from t2i.config import load as config
from t2i.config import yaml as yaml_text
from t2i.config.explain import ConfigError
from t2i.config.load import changed_on_resume, differences, flat, load, schema, to_yaml
from t2i.config.section import Section
from t2i.errors import InputError
from t2i.families import FAMILIES, config_class, family_of


class Data(Section):
    address: str = "shapes-2"
    resolution: int = Field(default=32, ge=16, le=1024)


class Vector(Section):
    kind: Literal["vector"] = "vector"
    codes: int = 512


class Scalar(Section):
    kind: Literal["scalar"] = "scalar"
    levels: tuple[int, ...] = (8, 8)


class Config(Section):
    family: Literal["cgan"] = "cgan"
    data: Data = Data()
    quantizer: Annotated[Vector | Scalar, Field(discriminator="kind")] = Vector()
    guidance: Data | None = None
    encoder: Literal["aligned", "bow", "tfidf"] = "aligned"
    mixed_precision: Literal["no", "bf16"] = "no"
    learning_rate: float = Field(default=1e-3, gt=0)
    train_batch_size: int = Field(default=64, ge=1)
    max_train_steps: int = Field(default=1000, ge=1)
    seed: int | None = 0
    augment: tuple[str, ...] = ()
    flip: bool = False

    @field_validator("train_batch_size")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value

    @model_validator(mode="after")
    def _batch_fits(self) -> "Config":
        if self.train_batch_size > 4096:
            raise ValueError("train_batch_size must be at most 4096")
        return self


@pytest.fixture
def write(tmp_path: Path):
    def writer(text: str | bytes, name: str = "my.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return writer


def problems(source: Path | str | None, sets: list[str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(Config, source, sets or [])
    return caught.value.problems


def test_defaults_file_and_overrides_apply_in_that_order(write):
    path = write("family: cgan\ndata:\n  resolution: 64\nlearning_rate: 0.5\n")
    read = load(Config, path, ["learning_rate=0.25", "data.address=folder:/a b", "learning_rate=0.125"])
    assert read == Config(data=Data(address="folder:/a b", resolution=64), learning_rate=0.125)
    assert load(Config, None, []) == Config()
    assert load(Config, write("# nothing but a comment\n"), []) == Config()


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError):
        Config().seed = 1  # pyright: ignore


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2E+4", -2e4),
        (".5", 0.5),
        ("1.", 1.0),
        ("1_000", 1000),
        ("010", "010"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("off", "off"),
        ("Yes", "Yes"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("'1e-3'", "1e-3"),
        ("0x10", "0x10"),
        (".nan", ".nan"),
    ],
)
def test_plain_values_read_as_people_mean_them(text, value):
    read = yaml_text.parse(f"key: {text}", "it").value["key"]
    assert read == value and type(read) is type(value)


def test_numbers_that_yaml_takes_for_text_are_numbers_here(write):
    read = load(Config, write("learning_rate: 3e-4\nmax_train_steps: 1e5\nseed: 010\n"), [])
    assert (read.learning_rate, read.max_train_steps, read.seed) == (3e-4, 100_000, 10)


def test_no_and_off_are_text_where_text_is_asked_for_and_false_where_a_boolean_is(write):
    read = load(Config, write("mixed_precision: no\ndata: {address: off}\nflip: yes\n"), ["flip=off"])
    assert (read.mixed_precision, read.data.address, read.flip) == ("no", "off", False)


@pytest.mark.parametrize("key", ["data.address", "encoder", "seed", "learning_rate", "train_batch_size", "augment"])
def test_a_boolean_never_passes_for_another_type(key):
    value = "[true]" if key == "augment" else "true"
    (problem,) = problems(None, [f"{key}={value}"])
    assert problem.startswith(f"{key}") and f", got true (--set {key}={value})" in problem
    assert "not a boolean" in problem or "put text in quotes" in problem
    with pytest.raises(ValidationError):
        Data(resolution=True)


def test_every_mistake_is_reported_at_once_with_key_value_place_and_nearest_key(write):
    path = write(
        "family: cgan\n"  # 1
        "learnin_rate: 1e-3\n"  # 2
        "data:\n"  # 3
        "  resolutoin: 64\n"  # 4
        "  address: 5\n"  # 5
        "resolution: 64\n"  # 6
        "train_batch_size: 0\n"  # 7
        "train_batch_size: 7\n"  # 8
        "encoder: clipp\n"  # 9
        "zzz: 1\n"  # 10
        "quantizer: {kind: scalar, codes: 3}\n"  # 11
    )
    found = problems(path, ["data.resolution=8", "seed", "flip=maybe", "max_train_steps=1.5"])
    expected = {
        f"learnin_rate: unknown key, got 0.001 ({path} line 2); did you mean learning_rate?",
        f"data.resolutoin: unknown key, got 64 ({path} line 4); did you mean data.resolution?",
        f"data.address: must be text, got 5 ({path} line 5); put text in quotes",
        f"resolution: unknown key, got 64 ({path} line 6); did you mean data.resolution?",
        f"train_batch_size: occurs twice in {path}, lines 7 and 8; keep one",
        f"train_batch_size: must be even, got 7 ({path} line 8)",
        f"encoder: must be 'aligned', 'bow' or 'tfidf', got 'clipp' ({path} line 9)",
        "data.resolution: must be greater than or equal to 16, got 8 (--set data.resolution=8)",
        "--set seed: must read key=value, as in --set seed=1 or --set data.resolution=64",
    }
    assert expected <= set(found)
    rest = sorted(set(found) - expected)
    assert [line.split(":")[0] for line in rest] == ["flip", "max_train_steps", "quantizer.codes", "zzz"]
    assert "keys here: family, data" in rest[3] and "got 1.5 (--set max_train_steps=1.5)" in rest[1]
    with pytest.raises(InputError, match=r"^13 errors in the config:\n  "):
        load(Config, path, ["data.resolution=8", "seed", "flip=maybe", "max_train_steps=1.5"])


def test_a_single_mistake_is_a_single_line(write):
    with pytest.raises(ConfigError) as caught:
        load(Config, write("data: 5\n"), [])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("data: must be a section with the keys address, resolution, got 5 (")


def test_a_list_without_brackets_is_explained():
    with pytest.raises(ConfigError) as caught:
        load(config_class("cgan"), "cgan-tiny", ["init_from=cgan", "freeze=generator"])
    assert str(caught.value) == "freeze: must be a list, got 'generator' (--set freeze=generator); write ['generator']"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "data.augment.flip=true",
            "must be a list of color, grey, rotate, zoom, shift, noise, and has no keys below it ",
        ),
        ("data.augment=colour", "must be a list of color, grey, rotate, zoom, shift, noise, got 'colour' "),
        ("data.augment=null", "must be a list of color, grey, rotate, zoom, shift, noise, got null "),
        ("seed=purple", "must be a whole number, got 'purple' "),
        ("seed=1.0e+30", "must be a whole number, got 1e+30 "),
        ("learning_rate=[1]", "must be a number, got [1] "),
        ("compile=7", "must be true or false, got 7 "),
        ("best_metric={a: 1}", "must be text "),
    ],
)
def test_a_value_of_another_type_is_explained_in_plain_words(override, says):
    key = override.partition("=")[0].removesuffix(".flip")
    with pytest.raises(ConfigError) as caught:
        load(config_class("cgan"), None, [override])
    fix = {"data.augment.flip=true": "; write [color, grey]", "data.augment=colour": "; write [color]"}
    fix["data.augment=null"] = "; write [] for none"
    assert str(caught.value) == f"{key}: {says}(--set {override}){fix.get(override, '')}"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_explains_every_wrong_type(family):
    cls = config_class(family)
    for key in flat(load(cls, None)):
        for override in (f"{key}={{a: 1}}", f"{key}.below=1", f"{key}=[[1]]", f"{key}=purple", f"{key}=null"):
            try:
                load(cls, None, [override])
            except ConfigError as error:
                assert all(key.split(".")[0] in one or one.startswith("config: ") for one in error.problems), override
                assert not any(word in str(error) for word in ("a valid", "parse", "Input", "tuple", f"mean {key}?")), (
                    override
                )


def test_a_rule_about_the_whole_config_is_reported_without_dumping_it():
    assert problems(None, ["train_batch_size=5000"]) == ("config: train_batch_size must be at most 4096",)


def test_a_message_stays_on_its_line_whatever_the_value():
    (problem,) = problems(None, ["data.resolution='4\n\n\x1b[31m" + "9" * 500 + "'"])
    assert problem.isprintable() and len(problem) < 400


def test_a_key_may_be_missing_and_may_be_written_with_dots(write):
    class Needs(Section):
        data: Data
        path: str

    with pytest.raises(ConfigError) as caught:
        load(Needs, write("data.resolution: 64\n"), [])
    assert caught.value.problems[:2] == (
        "data: missing, and it has no default",
        "path: missing, and it has no default",
    )
    assert "indent its keys" in caught.value.problems[2]


def test_optional_sections_open_by_a_key_and_close_by_null():
    assert load(Config, None, ["guidance.resolution=64"]).guidance == Data(resolution=64)
    assert load(Config, None, ["guidance.resolution=64", "guidance="]).guidance is None
    assert load(Config, None, ["quantizer={kind: scalar, levels: [3, 5]}"]).quantizer == Scalar(levels=(3, 5))
    (problem,) = problems(None, ["seed=3", "seed.deep=4"])
    assert problem == "seed.deep: seed is not a section but 3 (--set seed.deep=4)"


@pytest.mark.parametrize("bad", ["", "=1", "a..b=1", ".a=1", "data.=1", "seed"])
def test_an_override_must_be_key_equals_value(bad):
    (problem,) = problems(None, [bad])
    assert "must read key=value" in problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n- b\n", "must hold `key: value` lines, got list ['a', 'b']"),
        ("just words", "must hold `key: value` lines, got str 'just words'"),
        ("a: [1\nb: 2\n", "my.yaml line 2: expected"),
        ("\tseed: 1\n", "my.yaml line 1: found character"),
        ("seed: 1\n---\nseed: 2\n", "my.yaml line 2: "),
        ("base: &b {seed: 1}\ndata: *b\n", "aliases (*name) are not supported"),
        ("data: !!python/object/apply:os.system ['exit 1']\n", "tag:yaml.org,2002:python/object/apply:os.system"),
        ("data: !!set {a, b}\n", "is not supported"),
        ("? [a, b]\n: 1\n", "a key must be a word"),
        ("seed: \x07\n", "special characters are not allowed"),
        (b"\xff\xfe\x00\x01", "is not UTF-8 text"),
        ("[" * 50_000, "nested too deeply"),
        ("# " + "x" * 1_000_001, "over 1,000,000 bytes"),
    ],
)
def test_files_that_are_no_config_are_refused_in_one_line(write, text, says):
    (problem,) = problems(write(text))
    assert says in problem and "my.yaml" in problem


def test_nothing_in_a_config_runs(write, tmp_path):
    mark = tmp_path / "ran"
    problems(write(f"data: !!python/object/apply:pathlib.Path.touch [!!python/object/new:pathlib.Path ['{mark}']]\n"))
    assert not mark.exists()


def test_the_wrong_family_is_said_without_listing_every_foreign_key(write):
    (problem,) = problems(write("text_tower: {width: 3}\nfamily: align\nvocabulary: 9\n"))
    assert problem.startswith("family: must be cgan, got 'align' (") and problem.endswith("line 2)")


@pytest.fixture
def shipped_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "cgan-tiny.yaml").write_text("family: cgan\nseed: 7\n")
    (folder / "align-tiny.yaml").write_text("seed: 8\n")
    (folder / "__init__.py").touch()
    monkeypatch.setattr(config, "files", lambda package: {"t2i.configs": folder}[package])
    return folder


def test_a_name_finds_a_shipped_config_and_a_wrong_one_lists_them(shipped_configs, monkeypatch):
    monkeypatch.chdir(shipped_configs)
    (shipped_configs / "mine.yaml").write_text("seed: 9\n")
    assert config.shipped() == ["align-tiny", "cgan-tiny", "mine"]
    assert load(Config, "cgan-tiny", []).seed == load(Config, "cgan-tiny.yaml", []).seed == 7
    assert load(Config, "mine.yaml", []).seed == 9
    (problem,) = problems("cgan-tyni")
    assert "(did you mean cgan-tiny?)" in problem and problem.endswith("shipped: align-tiny, cgan-tiny, mine")
    for odd in ("", "a\0b", "x" * 5000, "no/such/file.yaml"):
        (problem,) = problems(odd)
        assert "is neither a file nor a shipped config" in problem and len(problem) < 300


def test_a_run_folder_stands_for_its_config(write, tmp_path):
    write("family: cgan\nseed: 3\n", "config.yaml")
    assert load(Config, tmp_path, []).seed == 3
    assert family_of(tmp_path) == "cgan"


def test_the_family_of_a_file(write):
    with pytest.raises(ConfigError, match="family: missing in .*my.yaml; add a line `family: "):
        family_of(write("seed: 3\n"))
    with pytest.raises(ConfigError, match="occurs twice"):
        family_of(write("family: cgan\nfamily: align\n"))


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(InputError, match=r"'cgna' is unknown \(did you mean cgan\?\)"):
        config_class("cgna")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_has_a_config_whose_defaults_are_valid(family):
    cls = config_class(family)
    assert issubclass(cls, Section)
    assert load(cls, None, []) == cls()
    assert flat(cls())["family"] == family


def test_what_may_change_on_resume_exists():
    keys = {key for family in FAMILIES for key in flat(config_class(family)())}
    assert set(config.CHANGEABLE_ON_RESUME) <= keys


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_key_is_described(family):
    cls = config_class(family)
    sections = [cls, *(model for model in _models(cls))]
    silent = [
        f"{model.__name__}.{name}"
        for model in sections
        for name, field in model.model_fields.items()
        if name != "family" and not list(explain._sections(field.annotation)) and not field.description
    ]
    assert silent == []


def _models(cls):
    for field in cls.model_fields.values():
        for model in explain._sections(field.annotation):
            yield model
            yield from _models(model)


def test_a_config_survives_being_written_and_read(write):
    original = Config(
        data=Data(address="no: 'quotes' # 1e-3"),
        quantizer=Scalar(levels=(3, 3)),
        guidance=Data(address="1e-3"),
        learning_rate=1.25e-7,
        augment=("on", "12", "é", "null"),
        seed=None,
    )
    text = to_yaml(original)
    assert load(Config, write(text), []) == original
    assert yaml.safe_load(text)["augment"] == ["on", "12", "é", "null"]
    assert list(yaml.safe_load(text)) == list(Config.model_fields)


def test_any_text_and_number_survives_being_written_and_read():
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choice("0123456789eE.+-_:xnoyt~#&*!|> '\"\n") for _ in range(rng.randrange(8)))
        number = rng.choice([rng.uniform(-1, 1) * 10.0 ** rng.randint(-300, 300), rng.randint(-(10**12), 10**12)])
        tree = {"text": text, "number": number}
        back = yaml_text.parse(yaml_text.dump(tree), "it").value
        assert back == tree and type(back["number"]) is type(number)


def test_flat_and_differences():
    a, b = Config(), Config(data=Data(resolution=64), guidance=Data(), augment=("flip",))
    assert flat(a)["data.resolution"] == 32 and flat(a)["augment"] == [] and flat(a)["guidance"] is None
    assert differences(a, a) == []
    assert differences(a, b) == [
        ("data.resolution", 32, 64),
        ("augment", [], ["flip"]),
        ("guidance.address", None, "shapes-2"),
        ("guidance.resolution", None, 32),
    ]


def test_the_schema_is_json_and_holds_ranges_and_defaults():
    text = json.dumps(schema(Config))
    resolution = json.loads(text)["$defs"]["Data"]["properties"]["resolution"]
    assert resolution == {"default": 32, "maximum": 1024, "minimum": 16, "title": "Resolution", "type": "integer"}


def test_mutated_configs_never_crash_and_always_name_the_key():
    """A tenth of the 300 mutations of promise P19, on every family's own config."""
    rng = random.Random(1)
    for family in FAMILIES:
        cls = config_class(family)
        keys = list(flat(cls()))
        for _ in range(30):
            key = rng.choice([key for key in keys if key != "family"])
            leaf = key.rpartition(".")[2]
            spot = rng.randrange(len(leaf))
            typo = key.removesuffix(leaf) + leaf[:spot] + rng.choice("qxz".replace(leaf[spot], "")) + leaf[spot + 1 :]
            with pytest.raises(ConfigError) as caught:
                load(cls, None, [f"{typo}=1", f"{key}={{nonsense: 1}}"])
            named = [problem.partition(":")[0] for problem in caught.value.problems]
            assert typo in named and any(name == key or name.startswith(f"{key}.") for name in named)
            if len(leaf) > 5:  # top_q may be top_k or top_p
                assert f"did you mean {key}?" in next(p for p in caught.value.problems if p.startswith(f"{typo}:"))


def test_configs_load_without_torch():
    """Errors must come before any slow import."""
    code = (
        "import sys; from t2i.config.load import load; from t2i.families import FAMILIES, config_class;"
        "[load(config_class(f), None, []) for f in FAMILIES];"
        "print([m for m in ('torch', 'transformers', 'sklearn', 'gensim', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("key", "then", "now", "same"),
    [
        ("init_from", "runs/a", "./runs/a", True),
        ("init_from", "runs/a", "runs/a/", True),
        ("init_from", "runs/a", "runs/b/../a", True),
        ("init_from", "runs/a", "HERE/runs/a", True),
        ("init_from", "runs/a", "link", True),
        ("init_from", "runs/a", "runs/b", False),
        ("init_from", "cgan", "./cgan", False),
        ("init_from", "runs/a", None, False),
        ("validation_extractor", "align:runs/a", "align:./runs/a/", True),
        ("validation_extractor", "align:runs/a", "clip:runs/a", False),
        ("validation_extractor", "align:runs/a", "runs/a", False),
    ],
)
def test_another_spelling_of_a_place_is_no_change_on_resume(key, then, now, same, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "link").symlink_to("runs/a")
    cls = config_class("cgan")
    before, after = (cls.model_validate({key: place and place.replace("HERE", str(tmp_path))}) for place in (then, now))
    assert (changed_on_resume(before, after, ()) == []) == same
    assert ("seed", 0, 5) in changed_on_resume(before, after.model_copy(update={"seed": 5}), ())
