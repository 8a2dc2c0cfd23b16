"""Folders and files of weights are complete and finite, or refused in one line; their code never runs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import tiny_text_models as tiny
from t2i.errors import InputError
from t2i.extractors import open_extractor
from t2i.tensors import read_state_dict
from t2i.text import TextConfig, fit_encoder

Door = Callable[[Path], object]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_clip_with_images(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("models") / "bert")


def as_extractor(folder: Path) -> object:
    return open_extractor(f"clip:{folder}")


def as_text(folder: Path) -> object:
    return fit_encoder(TextConfig(encoder="clip", path=str(folder)), [])


def edited(name: str, **changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        found = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(found | changes))

    return damage


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink(missing_ok=True) or (folder / name).write_bytes(content) and None


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def poisoned(value: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["text_model.encoder.layers.1.mlp.fc1.weight"][3, 5] = value
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return damage


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**42)


def sharded_to(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe as config": (instead("config.json", os.mkfifo), "a pipe, not a plain file"),
    "pipe as weights": (instead("model.safetensors", os.mkfifo), "a pipe, not a plain file"),
    "pipe as tokenizer": (instead("tokenizer.json", os.mkfifo), "a pipe, not a plain file"),
    "device as weights": (instead("model.safetensors", lambda path: path.symlink_to("/dev/zero")), "a device"),
    "device as config": (instead("config.json", lambda path: path.symlink_to("/dev/zero")), "a device"),
    "device as vocabulary": (instead("vocab.json", lambda path: path.symlink_to("/dev/zero")), "a device"),
    "folder as weights": (instead("model.safetensors", Path.mkdir), "a folder, not a plain file"),
    "link to nothing": (instead("tokenizer.json", lambda path: path.symlink_to("none")), "No such file"),
    "sparse weights": (instead("model.safetensors", sparse), "over the limit"),
    "sparse tokenizer": (instead("tokenizer.json", sparse), "over the limit"),
    "pointer as weights": (replaced("model.safetensors", POINTER), "Git LFS pointer"),
    "pointer as tokenizer": (replaced("tokenizer.json", POINTER), "Git LFS pointer"),
    "deep config": (replaced("config.json", DEEP), "config.json is not valid JSON"),
    "deep tokenizer config": (replaced("tokenizer_config.json", DEEP), "tokenizer_config.json is not valid JSON"),
    "deep tokenizer": (replaced("tokenizer.json", DEEP), "cannot be loaded"),
    "list as config": (replaced("config.json", b"[]"), "has no model_type"),
    "list as model type": (edited("config.json", model_type=["clip"]), "has no model_type"),
    "index beside": (sharded_to("../outside.safetensors"), "outside the folder"),
    "index far away": (sharded_to("/etc/outside.safetensors"), "outside the folder"),
    "index to nothing": (sharded_to("part.safetensors"), "lacks part.safetensors"),
    "index without map": (
        lambda f: (sharded_to("x")(f), replaced("model.safetensors.index.json", b"{}")(f))[1],
        "maps no weights",
    ),
    "other weights by name": (edited("config.json", transformers_weights="../outside.safetensors"), "outside the folder"),
    "pickled weights": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin") and None, "only pickled weights"),
    "adapter": (edited("adapter_config.json", base_model_name_or_path="x"), "holds an adapter"),
    "nan": (poisoned(float("nan")), "not finite"),
    "infinity": (poisoned(float("-inf")), "not finite"),
    "cut weights": (lambda f: os.truncate(f / "model.safetensors", 9000), "damaged or incomplete"),
    "empty weights": (replaced("model.safetensors", b""), "damaged or incomplete"),
    "no tokenizer": (lambda f: [path.unlink() for path in f.glob("token*")] and None, "no tokenizer"),
    "small embedding": (edited("config.json", text_config={"eos_token_id": 5, "vocab_size": 8}), "cannot be loaded"),
    "width of another": (edited("config.json", projection_dim=7), "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("door", [as_extractor, as_text])
@pytest.mark.parametrize("kind", BAD)
def test_bad_folders_are_refused_in_one_line(door: Door, kind: str, clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip, folder)
    damage, message = BAD[kind]
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        door(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("known", [True, False])
def test_no_code_of_a_folder_runs(name: str, known: bool, clip: Path, tmp_path: Path, monkeypatch) -> None:
    folder, mark = tmp_path / "clip", tmp_path / "ran"
    shutil.copytree(clip, folder)
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    classes = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoProcessor", "AutoTokenizer")
    unknown = {"image_processor_type": "Evil", "tokenizer_class": "Evil"} if not known else {}
    edited(name, auto_map=dict.fromkeys(classes, "evil.Evil") | {"AutoTokenizer": ["evil.Evil"] * 2}, **unknown)(folder)

    def asked(*_: object) -> str:
        raise AssertionError("the folder's code must not be asked for")

    monkeypatch.setattr("builtins.input", asked)
    for door in (as_extractor, as_text):
        try:
            door(folder)
        except InputError as error:
            assert "\n" not in str(error)
    assert not mark.exists()


def test_files_that_decide_nothing_leave_the_name_alone(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip, folder)
    name = open_extractor(f"clip:{folder}").name
    for other in ("more.json", "README.txt", "chat.model", "optimizer.safetensors", "generation_config.json"):
        (folder / other).write_bytes(b"{}")
    assert open_extractor(f"clip:{folder}").name == name == open_extractor(f"clip:{clip}").name
    weights = load_file(folder / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert open_extractor(f"clip:{folder}").name != name


@pytest.mark.parametrize("layout", ["root", "cache", "pipeline", "sentences"])
def test_the_folder_that_fits_is_named(layout: str, clip: Path, bert: Path, tmp_path: Path) -> None:
    inner = {
        "root": "models/vit",
        "cache": "models--openai--clip/snapshots/0123",
        "pipeline": "text_encoder",
        "sentences": "0_CLIPModel",
    }[layout]
    shutil.copytree(clip, tmp_path / inner)
    if layout == "pipeline":
        (tmp_path / "model_index.json").write_text("{}")
    if layout == "sentences":  # a part of another kind at the top
        shutil.copy(bert / "config.json", tmp_path)
    for door in (as_extractor, as_text):
        with pytest.raises(InputError) as error:
            door(tmp_path)
        assert f"{tmp_path / inner} holds a 'clip' model: name that folder" in str(error.value)


def test_a_pipeline_has_its_tokenizer_beside_the_text_encoder(clip: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path / "text_encoder_2")
    (tmp_path / "tokenizer_2").mkdir()
    for file in (tmp_path / "text_encoder_2").glob("token*"):
        file.rename(tmp_path / "tokenizer_2" / file.name)
    found, expected = (as_text(folder).encode(["a star"]) for folder in (tmp_path / "text_encoder_2", clip))  # type: ignore[attr-defined]
    assert torch.equal(found.pooled_BP, expected.pooled_BP)


def test_clip_captions_have_the_same_bits_in_any_company(clip: Path) -> None:
    extractor = open_extractor(f"clip:{clip}")
    captions = [*tiny.CAPTIONS[:30], "", "a star", " ".join(tiny.CAPTIONS[:20])]
    with pytest.warns(UserWarning, match="1 of 33 captions is over the 77 tokens"):
        together = extractor.text_features(captions)  # type: ignore[attr-defined]
    for row in (0, 7, 29, 30, 31):
        alone = extractor.text_features([captions[row]])  # type: ignore[attr-defined]
        np.testing.assert_array_equal(alone[0], together[row])


# ---- the caller's generator


@pytest.mark.parametrize(
    "door", ["clip", "clip as text", "bert", "dinov2", "inception", "embedded", "prior", "cvae", "cgan"]
)
def test_loading_leaves_the_callers_generator_alone(door: str, clip: Path, bert: Path, tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    from t2i.extractors.inception_network import Inception
    from t2i.pipeline import TextToImagePipeline
    from t2i.weights import shipped

    def dinov2() -> object:
        return open_extractor(f"dinov2:{tmp_path}")

    def inception() -> object:
        return open_extractor(f"inception:{tmp_path / 'inception.safetensors'}")

    if door == "dinov2":
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        }
        Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path)
    if door == "inception":
        weights = {**Inception().state_dict(), "fc.weight": torch.zeros(1008, 2048)}
        save_file(weights, tmp_path / "inception.safetensors")
    doors: dict[str, Callable[[], object]] = {
        "clip": lambda: as_extractor(clip),
        "clip as text": lambda: as_text(clip),
        "bert": lambda: fit_encoder(TextConfig(encoder="bert", path=str(bert)), []),
        "dinov2": dinov2,
        "inception": inception,
        "embedded": lambda: open_extractor("embedded"),
        "prior": lambda: TextToImagePipeline.from_pretrained(shipped()["prior"]),
        "cvae": lambda: TextToImagePipeline.from_pretrained(shipped()["cvae"]),
        "cgan": lambda: TextToImagePipeline.from_pretrained(shipped()["cgan"]),
    }
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    doors[door]()
    assert torch.equal(torch.rand(3), expected)


# ---- single files of weights


class Exploit:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch ran",))


def test_bad_weight_files_are_refused_in_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = {"a.weight": torch.ones(2, 2)}
    torch.save(good | {"a.weight": torch.tensor([1.0, float("nan")])}, "nan.pth")
    save_file({"a.weight": torch.tensor([float("inf")])}, "inf.safetensors")
    torch.save({"a.weight": Exploit()}, "exploit.pth")
    torch.save(torch.nn.Linear(2, 2), "module.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), "program.pt")
    torch.save([good], "list.pth")
    torch.save({"state": good}, "nested.pth")
    Path("pointer.safetensors").write_bytes(POINTER)
    Path("pointer.pth").write_bytes(POINTER)
    Path("garbage.pth").write_bytes(b"\x80\x02garbage")
    Path("empty.safetensors").write_bytes(b"")
    Path("folder.pth").mkdir()
    os.mkfifo("pipe.pth")
    os.symlink("/dev/zero", "zero.pth")
    sparse(Path("sparse.pth"))
    expected = {
        "nan.pth": "not finite (a.weight)",
        "inf.safetensors": "not finite (a.weight)",
        "exploit.pth": "holds pickled objects besides tensors",
        "module.pth": "holds pickled objects besides tensors",
        "program.pt": "holds a TorchScript program",
        "list.pth": "is not a state dict",
        "nested.pth": "is not a state dict",
        "pointer.safetensors": "Git LFS pointer",
        "pointer.pth": "Git LFS pointer",
        "garbage.pth": "cannot be read as weights",
        "empty.safetensors": "cannot be read as weights",
        "folder.pth": "is a folder",
        "pipe.pth": "a pipe, not a plain file",
        "zero.pth": "a device, not a plain file",
        "sparse.pth": "over the limit",
        "none.pth": "not found",
    }
    for name, message in expected.items():
        with pytest.raises(InputError) as error:
            read_state_dict(Path(name), "weights", "name another file")
        assert message in str(error.value) and name in str(error.value) and "\n" not in str(error.value), name
    assert not Path("ran").exists()
    torch.save(good, "good.pth")
    assert torch.equal(read_state_dict(Path("good.pth"), "weights", "x")["a.weight"], good["a.weight"])
