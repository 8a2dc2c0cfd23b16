"""`t2i sample`: files with their description, written whole or not at all; and the way from `t2i train`."""

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.commands import command_lines
from builders.tiny_run import CAPTIONS, STEP, make_run
from t2i.errors import InputError
from t2i.files import new_folder
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.output import free_folder
from t2i.sampling.prompts import image_seed, read_prompts

PROMPT = "a small red circle"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes a separate run for each test, called `run`, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, tmp_path / "run")).relative_to(tmp_path)


@pytest.fixture
def t2i(capsys: pytest.CaptureFixture[str]):
    """Runs one command line; returns (exit status, lines of stdout, lines of stderr)."""
    return command_lines(capsys)


def pixels(folder: Path) -> np.ndarray:
    """Returns the images of a manifest, in its order."""
    entries = json.loads((folder / "manifest.json").read_text())["pictures"]
    return np.stack([np.asarray(Image.open(folder / entry["file"])) for entry in entries])


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


# ---- what is written -----------------------------------------------------------------------------------------------


def test_pictures_manifest_and_grid(t2i, run):
    prompts = CAPTIONS[:2]
    status, out, err = t2i("sample", run, *prompts, "-n", 3, "--seed", 5, "--truncation", 0.8, "--guidance", 1.5)
    folder = run / "samples" / "a-small-red-circle-seed5"
    assert (status, err) == (0, [])
    assert out == [f"wrote 6 images, grid.png and manifest.json to {folder}"]
    names = [f"{i:03d}_a-small-red-circle.png" for i in range(3)]
    names += [f"{i:03d}_a-large-blue-square-above-a-small-green.png" for i in (3, 4, 5)]
    assert tree(folder) == sorted(str(folder / name) for name in [*names, "grid.png", "manifest.json"])

    pipe = TextToImagePipeline.from_pretrained(run)
    expected = pipe(prompts, 3, seed=5, truncation=0.8, guidance_scale=1.5, output_type="uint8")
    assert np.array_equal(pixels(folder), expected.images)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["file"] for entry in manifest["pictures"]] == names
    assert [entry["seed"] for entry in manifest["pictures"]] == expected.seeds
    assert [entry["picture"] for entry in manifest["pictures"]] == [0, 1, 2] * 2
    assert {entry["prompt"] for entry in manifest["pictures"]} == set(prompts)
    wanted = {"run": "run", "seed": 5, "guidance": 1.5, "truncation": 0.8, "family": "cgan", "num_images_per_prompt": 3}
    assert wanted.items() <= manifest.items()
    assert manifest["checkpoint"]["step"] == STEP
    assert manifest["checkpoint"]["sha256"] == pipe.manifest["sha256"]
    assert manifest["text_encoder"] == {"name": "bow", "digest": pipe.text_encoder.digest()}
    assert set(manifest["versions"]) == {"t2i", "torch", "python"}
    text = Image.open(folder / names[4]).text
    assert text == {"prompt": prompts[1], "picture": "1", "seed": str(expected.seeds[4])}
    sheet = Image.open(folder / "grid.png")
    assert sheet.width == 3 * 134 + 6 and sheet.height > 2 * 134  # three a row, labels below
    colours = np.asarray(sheet.crop((6, 6, 134, 134)))
    assert np.array_equal(colours[::4, ::4], expected.images[0])


def test_a_picture_does_not_depend_on_batch_size_or_company(t2i, run):
    t2i("sample", run, *CAPTIONS, "-n", 3, "--out", "together", "--batch-size", 32)
    together = pixels(Path("together"))
    for batch_size in (1, 4, 8):
        t2i("sample", run, *CAPTIONS, "-n", 3, "--batch-size", batch_size, "--out", f"by{batch_size}")
        assert np.array_equal(pixels(Path(f"by{batch_size}")), together)
    t2i("sample", run, CAPTIONS[3], "--out", "alone")
    assert np.array_equal(pixels(Path("alone")), together[9:10])


def test_the_same_command_never_overwrites(t2i, run):
    for _ in range(3):
        assert t2i("sample", run, PROMPT)[0] == 0
    names = ["a-small-red-circle-seed0", "a-small-red-circle-seed0-2", "a-small-red-circle-seed0-3"]
    assert sorted(path.name for path in (run / "samples").iterdir()) == names
    first, *others = (pixels(run / "samples" / name) for name in names)
    assert all(np.array_equal(first, other) for other in others)
    (Path("empty")).mkdir()
    assert t2i("sample", run, PROMPT, "--out", "empty")[0] == 0
    assert np.array_equal(pixels(Path("empty")), first)


def test_a_saved_pipeline_is_sampled_too_and_left_alone(t2i, run):
    TextToImagePipeline.from_pretrained(run).save_pretrained("saved", prompts=[])
    before = tree(Path("saved"))
    assert t2i("sample", run, PROMPT, "--out", "a")[0] == 0
    status, out, _ = t2i("sample", "saved", PROMPT)
    assert status == 0 and out[0].endswith(" to samples/a-small-red-circle-seed0")
    assert np.array_equal(pixels(Path("samples/a-small-red-circle-seed0")), pixels(Path("a")))
    assert tree(Path("saved")) == before


def test_prompt_files(t2i, run):
    Path("p.txt").write_text("\ufeff" + CAPTIONS[0] + "\r\n\r\n" + CAPTIONS[1] + "  \n")
    Path("p.jsonl").write_text(json.dumps({"text": CAPTIONS[0]}) + "\n" + json.dumps({"Caption": CAPTIONS[1:3]}) + "\n")
    Path("p.tsv").write_text(f"Prompt\tCategory\n{CAPTIONS[0]}\tShapes\n{CAPTIONS[1]}\tShapes\n")
    assert t2i("sample", run, *CAPTIONS[:2], "--out", "words")[0] == 0
    for suffix in ("txt", "jsonl", "tsv"):
        assert t2i("sample", run, "--prompts", f"p.{suffix}", "--out", suffix) == (
            0, [f"wrote 2 images, grid.png and manifest.json to {suffix}"], [],
        )  # fmt: skip
        assert np.array_equal(pixels(Path(suffix)), pixels(Path("words")))
    assert t2i("sample", run, CAPTIONS[2], "--prompts", "p.txt", "--out", "both")[0] == 0
    assert len(pixels(Path("both"))) == 3


def test_what_stands_in_a_prompt_file_stays(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text('Category\tPROMPT\nx\t"STOP" reads the sign\nx\tSalvador Dalí\u2028paints\n')
    assert read_prompts(path) == ['"STOP" reads the sign', "Salvador Dalí paints"]


def test_interpolation_of_noise(t2i, run):
    argv = ["sample", run, *CAPTIONS[:2], "--interpolate", "noise", "--frames", 4, "-n", 2]
    status, out, err = t2i(*argv, "--out", "rows")
    assert (status, err) == (0, []) and out[0].startswith("wrote 16 images")
    rows = pixels(Path("rows")).reshape(2, 2, 4, 32, 32, 3)
    plain = TextToImagePipeline.from_pretrained(run)(CAPTIONS[:2], 3, seed=0, output_type="uint8").images
    plain = plain.reshape(2, 3, 32, 32, 3)
    for prompt in range(2):
        for k in range(2):
            assert np.array_equal(rows[prompt, k, 0], plain[prompt, k])
            assert np.array_equal(rows[prompt, k, -1], plain[prompt, k + 1])
    entries = json.loads(Path("rows/manifest.json").read_text())["pictures"]
    assert [entry["weight"] for entry in entries[:4]] == [0, 1 / 3, 2 / 3, 1]
    assert entries[4]["seeds"] == [image_seed(0, CAPTIONS[0], 1), image_seed(0, CAPTIONS[0], 2)]
    assert Image.open("rows/grid.png").width == 4 * 134 + 6


def test_interpolation_of_captions(t2i, run):
    argv = ["sample", run, *CAPTIONS[:3], "--interpolate", "caption", "--frames", 3, "--seed", 2]
    status, out, err = t2i(*argv, "--out", "rows")
    assert (status, err) == (0, []) and out[0].startswith("wrote 6 images")
    rows = pixels(Path("rows"))
    pipe = TextToImagePipeline.from_pretrained(run)
    seeds = [image_seed(2, caption, 0) for caption in CAPTIONS[:2]]
    ends = pipe(
        [CAPTIONS[0], CAPTIONS[1], CAPTIONS[1], CAPTIONS[2]], seed=np.repeat(seeds, 2), output_type="uint8"
    ).images
    assert np.array_equal(rows[[0, 2, 3, 5]], ends)
    assert len(np.unique(rows.reshape(6, -1), axis=0)) == 6
    entries = json.loads(Path("rows/manifest.json").read_text())["pictures"]
    assert (entries[4]["prompt"], entries[4]["to"], entries[4]["weight"]) == (CAPTIONS[1], CAPTIONS[2], 0.5)


def test_a_long_grid_is_cut_and_says_so(t2i, run, monkeypatch):
    monkeypatch.setattr("t2i.sampling.output.GRID_MOST", 4)
    monkeypatch.setattr("t2i.sample.images.GRID_MOST", 4)
    monkeypatch.setattr("t2i.console.LINE_SECONDS", 0.0)
    _, out, err = t2i("sample", run, *CAPTIONS, "-n", 2, "--out", "many", "--batch-size", 4)
    assert out == ["wrote 10 images, grid.png and manifest.json to many (grid.png shows the first 4)"]
    assert err[0] == "sampling: 1 of 10 images" and err[-1] == "sampling: 10 of 10 images"  # no terminal here: lines
    assert len(pixels(Path("many"))) == 10 and Image.open("many/grid.png").width == 2 * 134 + 6


def test_prompts_from_standard_input_keep_one_model_loaded(t2i, run, monkeypatch):
    lines = [CAPTIONS[0], "", "x" * 5000, "\ufeff", CAPTIONS[1], CAPTIONS[0]]
    data = "\n".join(lines).encode() + b"\ncaf\xe9\n" + CAPTIONS[2].encode()  # no line end at the end of input
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    loads: list[object] = []
    read = TextToImagePipeline.from_pretrained
    monkeypatch.setattr(TextToImagePipeline, "from_pretrained", lambda *a: loads.append(a) or read(*a))
    status, out, err = t2i("sample", run, "-i", "-n", 2, "--seed", 5)
    assert status == 0 and len(loads) == 1
    assert err[0].startswith("ready: one prompt per line")
    told = [
        "error: the prompt 'xxxxx", "error: the prompt '\\ufeff' is empty", "error: the line b'caf\\xe9' is not UTF-8",
    ]  # fmt: skip
    assert len(err) == 4 and all(line.startswith(start) for line, start in zip(err[1:], told, strict=True)), err
    assert len(out) == 8 and all(Path(path).is_file() for path in out)
    images = np.stack([np.asarray(Image.open(path)) for path in out])
    expected = read(run)([CAPTIONS[k] for k in (0, 1, 0, 2)], 2, seed=5, output_type="uint8").images
    assert np.array_equal(images, expected)
    folders = [Path(path).parent for path in out]
    assert folders[0] != folders[4] and all((folder / "manifest.json").is_file() for folder in folders)


def test_lines_go_below_out_and_what_has_no_effect_is_refused(t2i, run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{PROMPT}\n".encode())))
    assert t2i("sample", run, "-i", "--out", "mine")[1] == ["mine/a-small-red-circle-seed0/000_a-small-red-circle.png"]
    for argv, says in {
        ("-i", PROMPT): f"--interactive reads prompts from standard input; drop it or '{PROMPT}'",
        ("-i", "--prompts", "p.txt"): "drop it or --prompts p.txt",
        ("-i", "--interpolate", "caption"): "drop it or --interpolate caption",
    }.items():
        status, out, err = t2i("sample", run, *argv)
        assert (status, out, len(err)) == (2, [], 1) and says in err[0]
    assert "missing does not exist" in t2i("sample", "missing", "-i")[2][0]


# ---- warnings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--frames", "5"], "--frames 5 has no effect without --interpolate"),
        (["--truncation", "0", "-n", "2"], "--truncation 0 removes the noise"),
        ([PROMPT], f"repeated prompt {PROMPT!r}"),
        (["a circle " * 60], "1 caption is longer than the 16 tokens that the text encoder bow reads"),
        (
            ["circle " * 60, "red circle " * 60, "red " * 60, "--batch-size", "1"],
            "3 captions are longer than the 16 tokens that the text encoder bow reads",
        ),
    ],
)
def test_one_line_a_warning(t2i, run, argv, says):
    status, _, err = t2i("sample", run, PROMPT, *argv)
    assert status == 0
    assert len(err) == 1 and err[0].startswith(f"warning: {says}")


def test_a_damaged_checkpoint_is_named_and_an_older_one_used(t2i, run):
    make_run(run, step=STEP + 1, seed=1)
    weights = run / "checkpoints" / f"step-{STEP + 1:08d}" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    status, _, err = t2i("sample", run, PROMPT, "--out", "a")
    assert status == 0 and len(err) == 1 and err[0].startswith("warning: checkpoint") and "is damaged" in err[0]
    assert json.loads(Path("a/manifest.json").read_text())["checkpoint"]["step"] == STEP


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "no prompt; add one in quotes"),
        ([""], "the prompt '' is empty"),
        (["\u200b "], "is empty"),
        (["x" * 10_000], "has 10,000 characters; shorten it to at most 4,096"),
        (["--prompts", "missing.txt"], "cannot read prompts file missing.txt: No such file or directory"),
        (["--prompts", "run"], "cannot read prompts file run: it is a folder, not a plain file"),
        (["--prompts", "void.txt"], "prompts file void.txt holds no prompt"),
        (["--prompts", "long.txt"], "long.txt line 2: the prompt 'yyyy"),
        (["--prompts", "latin.txt"], "prompts file latin.txt is not UTF-8 text (byte 3)"),
        (["--prompts", "table.xlsx"], "prompts file table.xlsx is not a .txt, .jsonl, .json, .tsv, .csv file"),
        (["--prompts", "bad.jsonl"], "bad.jsonl line 2 is not JSON"),
        (["--prompts", "other.jsonl"], "other.jsonl line 1 has no text under prompt, text, caption"),
        (["--prompts", "other.tsv"], "other.tsv has no column prompt, text, caption"),
        (["--prompts", "gap.tsv"], "gap.tsv line 3: the prompt '' is empty"),
        ([PROMPT, "--out", "used"], "used holds files; name a new or an empty folder"),
        ([PROMPT, "--out", "void.txt"], "void.txt is a file; name a new or an empty folder"),
        ([PROMPT, "--guidance", "-1"], "guidance must be a number from 0 on, got -1.0"),
        ([PROMPT, "--truncation", "nan"], "--truncation nan: must be a finite number"),
        ([PROMPT, "--interpolate", "caption"], "--interpolate caption needs two prompts or more, got one"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(t2i, run, argv, says):
    Path("void.txt").write_text("\n \n")
    Path("long.txt").write_text("fine\n" + "y" * 5000)
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("table.xlsx").write_text("prompt\na")
    Path("bad.jsonl").write_text('{"prompt": "fine"}\n{"prompt"\n')
    Path("other.jsonl").write_text('{"words": "fine"}\n')
    Path("other.tsv").write_text("words\nfine\n")
    Path("gap.tsv").write_text("id\tprompt\n1\tfine\n2\n")
    Path("used").mkdir()
    Path("used/mine").write_text("x")
    before = tree(Path())
    status, out, err = t2i("sample", run, *argv)
    assert status == 2 and out == []
    assert len(err) == 1 and err[0].startswith("error: ") and says in err[0], err
    assert tree(Path()) == before


def test_a_prompt_longer_than_a_file_name_is_a_prompt_and_a_long_word_no_crash(t2i, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("void.txt").write_text("")
    status, _, err = t2i("sample", "a small red circle " * 100, "--out", "void.txt")
    assert status == 2 and err == ["error: output folder void.txt is a file; name a new or an empty folder"]
    status, _, err = t2i("sample", "x" * 10_000, PROMPT)
    assert status == 2 and len(err) == 1 and "is too long for the name of a file or folder" in err[0]


def test_runs_that_cannot_be_sampled(t2i, run):
    shutil.copytree(run, "no-text")
    shutil.rmtree("no-text/text")
    Path("not-a-run").mkdir()
    Path("young").mkdir()
    Path("young/config.yaml").write_text("family: cgan\n")
    Path("file").write_text("x")
    for place, says in {
        "no-text": "no text encoder at no-text/text",
        "not-a-run": "not-a-run is not a run directory",
        "young": "run young has no checkpoint yet",
        "file": "file is a file; name a run directory",
        "missing": "missing does not exist; name a run directory",
    }.items():
        before = tree(Path())
        status, out, err = t2i("sample", place, PROMPT)
        assert (status, out, len(err)) == (2, [], 1) and err[0].startswith(f"error: {says}"), err
        assert tree(Path()) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), InputError("no"), KeyboardInterrupt()])
def test_what_breaks_off_leaves_nothing(t2i, run, monkeypatch, error):
    saved: list[Path] = []

    def fail_at_third(image, path, text):
        saved.append(path)
        if len(saved) == 3:
            raise error
        path.write_bytes(b"a picture")

    monkeypatch.setattr("t2i.sampling.output.save_png", fail_at_third)
    before = tree(Path())
    status, out, err = t2i("sample", run, *CAPTIONS, "--out", "deep/er/new")
    assert len(saved) == 3 and saved[0].parent.name != "new" and out == []
    assert (status, len(err)) == ((130, 0) if isinstance(error, KeyboardInterrupt) else (2, 1))
    assert tree(Path()) == before


# ---- from training on ----------------------------------------------------------------------------------------------


def test_train_then_sample(t2i, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = {
        "data.address": "shapes-1", "data.limit": 64, "text.encoder": "bow", "max_train_steps": 2,
        "train_batch_size": 8, "generator.width": 8, "generator.width_limit": 16, "generator.w_dim": 16,
        "discriminator.width": 8, "discriminator.width_limit": 16, "loss.negatives": 4, "device": "cpu",
    }  # fmt: skip
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    assert t2i("train", "cgan", "--run-dir", "trained", *words)[0] == 0
    status, out, err = t2i("sample", "trained", PROMPT, "a large blue star", "-n", 2, "--guidance", 1.2)
    assert (status, err) == (0, [])
    folder = Path("trained/samples/a-small-red-circle-seed0")
    assert pixels(folder).shape == (4, 32, 32, 3) and json.loads((folder / "manifest.json").read_text())["seed"] == 0

    # the pictures that training drew at this step, of captions that it holds out and with seeds 0, 1, ...
    from t2i.data import View, open_dataset

    captions = [options[0] for options in open_dataset("shapes-1", "val", View(limit=6)).captions]
    pipe = TextToImagePipeline.from_pretrained("trained")
    again = pipe(captions, seed=list(range(6)), output_type="uint8").images
    sheet = np.asarray(Image.open("trained/samples/step-00000002.png").convert("RGB"))
    for i, image in enumerate(again):
        drawn = sheet[6:134:4, 6 + 134 * i : 134 + 134 * i : 4]
        assert np.abs(drawn.astype(int) - image).max() <= 1
    apart = np.abs(again[1:].astype(int) - again[:-1]).max(axis=(1, 2, 3))
    assert apart.min() > 10  # so it is no accident


# ---- names and seeds -----------------------------------------------------------------------------------------------


def test_the_seed_in_a_manifest_makes_its_image_again(t2i, run):
    assert t2i("sample", run, *CAPTIONS[:2], "-n", 3, "--seed", 5, "--out", "all")[0] == 0
    entries = json.loads(Path("all/manifest.json").read_text())["pictures"]
    pipe = TextToImagePipeline.from_pretrained(run)
    for entry, image in zip(entries, pixels(Path("all")), strict=True):
        out = f"again{entry['seed']}"
        assert t2i("sample", run, entry["prompt"], "--seed", entry["seed"], "--out", out)[0] == 0
        assert np.array_equal(pixels(Path(out))[0], image)
        assert json.loads(Path(out, "manifest.json").read_text())["pictures"][0]["seed"] == entry["seed"]
        for seed in (entry["seed"], [entry["seed"]]):
            assert np.array_equal(pipe(entry["prompt"], seed=seed, output_type="uint8").images[0], image)


def test_a_folder_named_as_a_shipped_model_is_not_sampled_under_its_name(t2i, run):
    shutil.copytree(run, "cgan")
    status, _, err = t2i("sample", "cgan", PROMPT, "--out", "shipped")
    assert status == 0 and json.loads(Path("shipped/manifest.json").read_text())["resolution"] == 64
    assert "sampling from cgan, a model that ships with t2i and knows rendered shapes" in err
    assert any("for the cgan in this folder type ./cgan" in line for line in err)
    status, _, err = t2i("sample", "--model", "cgan", PROMPT, "--out", "named")
    assert status == 0 and len(err) == 1
    assert np.array_equal(pixels(Path("shipped")), pixels(Path("named")))
    status, _, err = t2i("sample", "./cgan", PROMPT, "--out", "own")
    assert (status, err) == (0, []) and pixels(Path("own")).shape == (1, 32, 32, 3)
    Path("prior").write_text("a file")
    assert TextToImagePipeline.from_pretrained(Path("cgan")).run == Path("cgan")
    with pytest.warns(UserWarning, match="for the prior in this folder type ./prior"):
        assert TextToImagePipeline.from_pretrained("prior").family == "prior"


def test_several_at_once_get_a_folder_each(tmp_path):
    def reserve(_: int) -> str:
        with free_folder(tmp_path / "new" / "samples", "red") as place, new_folder(place) as folder:
            (folder / "image").write_text("x")
        return place.name

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(reserve, range(24)))
    assert len(set(names)) == 24 and {"red", "red-2", "red-24"} <= set(names)
    assert all((tmp_path / "new" / "samples" / name / "image").exists() for name in names)
    with pytest.raises(KeyError), free_folder(tmp_path / "other" / "samples", "red"):
        raise KeyError
    assert not (tmp_path / "other").exists()


def test_unknown_words_are_named_once(t2i, run):
    status, _, err = t2i("sample", run, PROMPT, "a dog", "a dog and a cat", "--batch-size", 1, "--out", "a")
    assert status == 0
    assert err == ["warning: this model knows rendered shapes; 'dog', 'and', 'cat' are not among its words"]
