"""A reader on disk, in the commands and in Python."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import t2i
from builders.small_settings import ALIGN, SMALL
from builders.tiny_reader_run import make_reader_run, tiny_reader
from builders.tiny_run import make_run
from t2i import checkpoint
from t2i.cli import app
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.images import save_png

QUESTION = "what colour is the background?"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reader_run(tmp_path_factory.mktemp("reader") / "run")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for k, image in enumerate(open_dataset("shapes-2", "val", View(24, limit=5)).images(range(5))):
        save_png(image, folder / f"{k}.png")
    return folder


def test_a_run_reads_as_what_was_saved(run: Path, photos: Path) -> None:
    before = tiny_reader()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    reader = t2i.Reader.from_pretrained(run)
    assert torch.equal(torch.rand(2), expected)  # the caller's generator is left alone
    files = sorted(photos.iterdir())
    assert reader.digest() == before.digest() != tiny_reader(seed=1).digest()
    assert reader.caption(files) == before.caption([Image.open(file) for file in files])
    assert reader.answer(files, [QUESTION]) == before.answer(files, [QUESTION] * 5)
    assert set(reader.answer(files, [QUESTION])) <= set(reader.answers)
    assert reader.caption([]) == [] == reader.answer([], [QUESTION])


def test_an_image_is_read_alike_in_any_company_and_of_any_size(run: Path, photos: Path) -> None:
    reader, files = t2i.Reader.from_pretrained(run), sorted(photos.iterdir())
    captions = reader.caption(files)
    whole = reader.likelihood(files, captions)
    alone = [float(reader.likelihood([file], [caption])[0]) for file, caption in zip(files, captions, strict=True)]
    np.testing.assert_allclose(whole, alone, atol=1e-3)
    wide = np.asarray(Image.open(files[0]).resize((48, 24)))
    assert reader.caption([wide]) == reader.caption([wide[:, 12:36]])  # cut as training images are


def test_read_prints_a_line_an_image(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "read.jsonl"
    assert app.main(["read", str(run), str(photos), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0].startswith(f"{photos / '0.png'}\t")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["caption"] for row in rows] == t2i.Reader.from_pretrained(run).caption(sorted(photos.iterdir()))
    assert all(row["likelihood"] < 0 for row in rows)
    words = ["read", str(run), str(photos / "1.png"), "--ask", QUESTION, "--ask", "how many objects are there?"]
    assert app.main(words) == 0
    assert len(capsys.readouterr().out.strip().split("\t")) == 3


def test_the_captioner_of_an_align_run_is_read(tmp_path: Path, photos: Path, capsys) -> None:
    place = tmp_path / "align"
    sets = [word for value in (*SMALL, *ALIGN, "max_train_steps=2") for word in ("--set", value)]
    assert (
        app.main(["train", "align", "--config", "align-tiny", "--data", "shapes-1", "--run-dir", str(place), *sets])
        == 0
    )
    reader = t2i.Reader.from_pretrained(place)
    files = sorted(photos.iterdir())
    captions = ["a red circle", "a blue star"]
    found = reader.likelihood(files[:2], captions)
    state, _ = checkpoint.load(checkpoint.latest(place / "checkpoints"))  # type: ignore[arg-type]
    ids, mask, _ = reader.tokenizer(captions)
    assert "captioner" in state and len(reader.caption(files)) == 5
    # the sum over tokens is that of the loss it was trained with
    network = reader.network
    cells = next(reader.cells(files[:2]))
    side = int(cells.shape[1] ** 0.5)
    with torch.no_grad():
        mean = network.captions(cells.transpose(1, 2).unflatten(2, (side, side)), ids, mask)  # type: ignore[misc]
    assert -found.sum() / (mask.sum().item() - 2) == pytest.approx(mean.item(), rel=1e-4)
    capsys.readouterr()
    assert app.main(["read", str(place), str(photos), "--ask", QUESTION]) == 2
    assert "writes captions but does not answer questions" in capsys.readouterr().err


def test_broken_images_are_named_and_the_others_read(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(photos, folder)
    (folder / "1.png").write_bytes((photos / "1.png").read_bytes()[:40])
    (folder / "6.png").symlink_to(folder / "none.png")
    assert app.main(["read", str(run), str(folder)]) == 0
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(folder / f"{k}.png") for k in (0, 2, 3, 4)]
    assert err.count("\n") == 1 and f"warning: 2 images of 6 cannot be read: {folder / '1.png'} (" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["read", "{cgan}", "{photos}"], "does not read images; train a reader"),
        (["read", "{photos}", "{photos}"], "is not a run directory"),
        (["read", "{run}", "{empty}"], "holds no images"),
        (["read", "{run}", "{empty}/a.png"], "does not exist; name an image"),
        (["read", "{run}", "{run}/config.yaml"], "is not a supported image"),
        (["read", "{run}", "{broken}"], "name an image that can be read"),
        (["read", "{vqa}", "{photos}"], "answers questions but does not write captions; ask one with --ask"),
        (["read", "{caption}", "{photos}", "--ask", QUESTION], "does not answer questions"),
        (["read", "{run}", "{photos}", "--ask", " "], "a question is empty; ask one in words"),
        (["read", "{run}", "{photos}", "--ask", QUESTION, "--beams", "3"], "--beams 3 has no effect with --ask"),
        (["data", "caption", "{empty}", "{out}", "--by", "{run}"], "empty folder"),
        (["data", "caption", "{photos}", "{out}", "--by", "{vqa}"], "writes no captions"),
        (["data", "caption", "shapes-2", "{out}", "--by", "{run}"], "has no files"),
        (["data", "caption", "{photos}", "{photos}", "--by", "{run}"], "holds files"),
        (
            ["data", "caption", "{photos}", "{out}", "--by", "{run}", "--min-likelihood", "-1e-9"],
            "lower --min-likelihood",
        ),
    ],
)
def test_bad_input_is_one_line(run: Path, photos: Path, tmp_path: Path, capsys, words: list[str], said: str) -> None:
    places = {"run": run, "photos": photos, "empty": tmp_path / "empty", "out": tmp_path / "out"}
    places["empty"].mkdir()
    places["broken"] = tmp_path / "broken.png"
    places["broken"].write_bytes(b"no image")
    if "{cgan}" in words:
        places["cgan"] = make_run(tmp_path / "cgan")
    if "{vqa}" in words:
        places["vqa"] = make_reader_run(tmp_path / "vqa", tasks={"caption": 0, "answer": 1})
    if "{caption}" in words:
        places["caption"] = make_reader_run(tmp_path / "caption", tasks={"caption": 1, "answer": 0})
    assert app.main([word.format_map({k: str(v) for k, v in places.items()}) for word in words]) == 2
    shown = capsys.readouterr().err
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert said in line and "Traceback" not in shown


def test_a_question_that_is_cut_off_is_named(run: Path, photos: Path) -> None:
    reader, file = t2i.Reader.from_pretrained(run), photos / "0.png"
    long = "how many " + "large red and blue " * 40 + "objects are there?"
    with pytest.warns(UserWarning, match="1 of 2 questions is longer than the limit of 48 tokens"):
        reader.answer([file, file], [long, QUESTION])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader.answer([file], [QUESTION])


def test_a_damaged_reader_is_told_in_one_line(run: Path, tmp_path: Path) -> None:
    for name, text in (("tokenizer.json", "{"), ("tokenizer.json", None)):
        copy = make_reader_run(tmp_path / f"copy{text is None}")
        (copy / name).unlink() if text is None else (copy / name).write_text(text)
        with pytest.raises(InputError, match=r"is damaged \(.*\); train it again"):
            t2i.Reader.from_pretrained(copy)
