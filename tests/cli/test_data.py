"""`t2i data`: odd places are refused in one line, and the source is left alone."""

import os
from pathlib import Path

import pytest
from PIL import Image

from t2i.cli.app import main

INSIDE = "is inside data, which would change the data; name a folder outside of it"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with images in `data`, a pipe, and an empty home."""
    for k in range(4):
        path = tmp_path / "data/train" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (60 * k, 0, 0)).save(path)
        path.with_suffix(".txt").write_text(f"a red thing {k}")
    Image.new("RGB", (16, 16)).save(tmp_path / "data/outside.png")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check", "data", "--sheet", "data"], "--sheet data is a folder; name a PNG file in an existing folder"),
        (["check", "data", "--sheet", "none/a.png"], "there is no folder none"),
        (["check", "data", "--sheet", ""], "invalid value for '--sheet': it is empty; name a file or folder"),
        (["check", "pipe"], "data 'pipe' is a file, not a folder of captioned images"),
        (["check", "~no_such_user/data"], "data '~no_such_user/data' not found"),
        (["export", "data", "data/new"], INSIDE),
        (["filter", "data", "data/new", "--unique"], INSIDE),
        (["filter", "data", "./data/../data/train/new", "--unique"], INSIDE),
        (["split", "folder:data", "data/new"], INSIDE),
        (["pack", "data/", "--shards", "data/shards"], INSIDE),
        (["pack", "data", "--shards", ""], "invalid value for '--shards': it is empty; name a file or folder"),
        (["caption", "data", "data/new", "--by", "run"], INSIDE),
        (["filter", "data", "new", "--near", " ", "--top", "3"], "--near has no words"),
        (
            ["split", "data", "new", "--seed", str(2**63)],
            "--seed 9223372036854775808: must be less than 9223372036854775808",
        ),
        (["export", "shapes-1", "new", "-n", "x"], "invalid value for '--n' / '-n': must be a whole number"),
        (["export", "shapes-1", "new", "--split", ","], "--split ,: names nothing; list names with commas"),
        (["export", "shapes-1", "new", "--split", ""], "--split '': names nothing; list names with commas"),
        (["export", "shapes-1", "new", "--size", "2000"], "rendered at 16 to 1024 pixels, not 2000"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("[!.]*"))
    assert main(["data", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: ") and says in line
    assert [path for path in sorted(place.rglob("[!.]*")) if "cache" not in path.parts] == before


def test_the_home_folder_is_found_where_the_shell_leaves_its_sign(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "home").mkdir()
    assert main(["data", "export", "shapes-1", "~/shapes", "-n", "2"]) == 0
    assert (place / "home/shapes/metadata.jsonl").is_file() and not (place / "~").exists()


def test_warnings_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "export", "data", "out"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith("warning: skipped 1 image outside") for line in said] == [True]
