"""`t2i data caption`: output, resuming, the threshold, and the unchanged source."""

import json
from pathlib import Path

import pytest

from builders.tiny_reader_run import make_reader_run
from t2i.cli import app
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.images import save_png
from t2i.reader import captioning
from t2i.reader.captioning import write_captions
from t2i.reader.reading import Reader


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reader_run(tmp_path_factory.mktemp("reader") / "run")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Writes six images, one of which is broken, one has a caption, and two are in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for k, image in enumerate(open_dataset("shapes-2", "val", View(24, limit=5)).images(range(5))):
        save_png(image, folder / (f"more/{k}.png" if k > 2 else f"{k}.png"))
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "0.txt").write_text("my own words\n")
    return folder


def rows_of(out: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    return {row["file_name"]: row for row in rows}


def test_a_folder_becomes_a_data_set(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*")}
    out = tmp_path / "out"
    assert app.main(["data", "caption", str(photos), str(out), "--by", str(run)]) == 0
    said = capsys.readouterr().out
    assert "wrote captions of 5 images" in said and "broken.jpg" in said
    assert before == {path: path.stat().st_mtime_ns for path in photos.rglob("*")}
    rows, reader = rows_of(out), Reader.from_pretrained(run)
    assert set(rows) == {"0.png", "1.png", "2.png", "more/3.png", "more/4.png"}
    for name, row in rows.items():
        ((text, likelihood),) = reader.write([photos / name])
        assert row["text"] == text and row["likelihood"] == pytest.approx(likelihood, abs=1e-3)
    opened = open_dataset(f"folder:{out}", "train", View(16))
    assert set(opened.ids) <= set(rows) and all(
        list(c) == [rows[i]["text"]] for i, c in zip(opened.ids, opened.captions, strict=True)
    )


def test_captions_that_are_there_are_kept_where_asked(run: Path, photos: Path, tmp_path: Path) -> None:
    done = write_captions(Reader.from_pretrained(run), str(photos), tmp_path / "out", keep=True)
    assert (done.kept, done.written) == (1, 4)
    assert rows_of(tmp_path / "out")["0.png"] == {"file_name": "0.png", "text": "my own words"}


def test_a_stopped_captioning_goes_on_where_it_was(run: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(captioning, "BATCH", 2)
    reader, whole, out = Reader.from_pretrained(run), tmp_path / "whole", tmp_path / "out"
    write_captions(reader, str(photos), whole)
    write, calls = reader.write, []

    def stopping(*given):
        calls.append(len(given[0]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*given)

    monkeypatch.setattr(reader, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        write_captions(reader, str(photos), out)
    notes = out / captioning.NOTES
    notes.write_text(notes.read_text() + '["half a li')
    done = write_captions(reader, str(photos), out)
    assert done.before and done.before + sum(calls[2:]) == done.written == 5
    assert rows_of(out) == rows_of(whole)
    other = make_reader_run(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="by another reader or search; name a new folder"):
        write_captions(Reader.from_pretrained(other), str(photos), out)


def test_unlikely_captions_are_left_out_and_come_back_without_reading(
    run: Path, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    reader, out = Reader.from_pretrained(run), tmp_path / "out"
    write_captions(reader, str(photos), out)
    likelihoods = sorted(row["likelihood"] for row in rows_of(out).values())
    monkeypatch.setattr(reader, "write", lambda *given: pytest.fail("read again"))
    done = write_captions(reader, str(photos), out, minimum=likelihoods[2])
    assert done.dropped == 5 - len(rows_of(out)) and 0 < done.dropped < 5
    assert {path.name for path in out.rglob("*.png")} == {Path(name).name for name in rows_of(out)}
    assert write_captions(reader, str(photos), out).written == 5 and len(list(out.rglob("*.png"))) == 5
