"""Folders of captioned images: captions, splits, images, broken files, export."""

import contextlib
import csv
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.commands import error_of
from builders.hostile_data import in_the_past
from t2i import images
from t2i.data import View, open_dataset, verified_index
from t2i.data.captions import MAX_CHARACTERS, clean_caption
from t2i.data.folders import table
from t2i.data.folders.dataset import FolderDataset, open_folder
from t2i.data.folders.index import index_folder
from t2i.data.tools.check import check
from t2i.data.tools.check_report import format_report
from t2i.data.tools.export import export, export_splits
from t2i.errors import InputError


def picture(key: int, height: int = 12, width: int = 12) -> np.ndarray:
    return np.random.default_rng(key).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(path: Path, key: int = 0, height: int = 12, width: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(key, height, width)).save(path)
    return path


def put_captioned(folder: Path, names: list[str]) -> None:
    for key, name in enumerate(names):
        put(folder / name, key).with_suffix(".txt").write_text(f"picture {key}\n")


def jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def all_splits(folder: Path, seed: int = 0) -> dict[str, FolderDataset]:
    return {
        split: open_folder(str(folder), split, View(resolution=12, seed=seed)) for split in ("train", "val", "test")
    }


def captions_of(folder: Path, split: str = "train") -> dict[str, list[str]]:
    data = open_folder(str(folder), split, View(resolution=12))
    return {name: list(own) for name, own in zip(data.ids, data.captions, strict=True)}


# ---- captions ----


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  a\tred \r\n circle\u00a0 ", "a red circle"),
        ("cafe\u0301", "caf\u00e9"),
        ("e\u200b\u0301", "\u00e9"),
        ("a\x00b\x07c\x1b[0m", "abc[0m"),
        ("\u202eevil\u202c \u2066x\u2069\ufeff", "evil x"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("سلام می\u200cخواهم", "سلام می\u200cخواهم"),
        ("👩\u200d🚀 flies", "👩\u200d🚀 flies"),
        (" \u200b\n\u2028 ", ""),
        ("", ""),
    ],
)
def test_clean_caption(raw: str, cleaned: str) -> None:
    assert clean_caption(raw) == cleaned
    assert clean_caption(cleaned) == cleaned


def test_clean_caption_caps_the_length() -> None:
    assert clean_caption("word " * 5000) == ("word " * 5000)[:MAX_CHARACTERS].rstrip()
    assert len(clean_caption("x" * 1_000_000)) == MAX_CHARACTERS


# ---- layouts and captions files ----


def write_jsonl(path: Path, rows: list[tuple[str, str]]) -> None:
    jsonl(path / "metadata.jsonl", [{"file_name": name, "text": text} for name, text in rows])


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    with open(path / "metadata.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("file_name", "caption"), *rows])


def write_semicolons(path: Path, rows: list[tuple[str, str]]) -> None:
    with open(path / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows(
            [("text", "file_name", "likes"), *((b, a, 3) for a, b in rows), ("", "", "")]
        )


def write_parquet(path: Path, rows: list[tuple[str, str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"file_name": [a for a, _ in rows], "text": [b for _, b in rows]}), path / "metadata.parquet"
    )


def write_txt(path: Path, rows: list[tuple[str, str]]) -> None:
    for name, text in rows:
        with open((path / name).with_suffix(".txt"), "a", encoding="utf-8") as file:
            file.write(f"{text}\n\n")


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_semicolons, write_parquet, write_txt])
def test_every_kind_of_captions_file(write: Callable[[Path, list[tuple[str, str]]], None], folder: Path) -> None:
    for name in ("a.png", "sub/b.JPG", "sub/c.webp", "d.png"):
        put(folder / "train" / name)
    rows = [("a.png", "one,  \u201cquoted\u201d é"), ("sub/b.JPG", "two"), ("a.png", "second of a"), ("d.png", "  ")]
    write(folder / "train", [*rows, ("a.png", "second of a")])
    with pytest.warns(
        UserWarning, match=r"skipped 2 images in split train .* without a caption: train/d.png, train/sub/c.webp"
    ):
        got = captions_of(folder)
    assert got == {"train/a.png": ["one, \u201cquoted\u201d é", "second of a"], "train/sub/b.JPG": ["two"]}


def test_lists_of_captions_in_jsonl_and_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("train/a/1.png", "train/b/1.png"):
        put(folder / name)
    jsonl(folder / "train/a/metadata.jsonl", [{"file_name": "1.png", "text": ["x", " ", "y"], "caption": "unused"}])
    table = pa.table({"file_name": ["1.png"], "caption": [["p", "q"]], "bytes": [b"\0"]})
    pq.write_table(table, folder / "train/b/metadata.parquet")
    assert captions_of(folder) == {"train/a/1.png": ["x", "y"], "train/b/1.png": ["p", "q"]}


def test_metadata_at_the_top_and_below_merge_and_win_over_txt(folder: Path) -> None:
    put_captioned(folder, ["train/1.png", "train/2.png"])
    jsonl(folder / "metadata.jsonl", [{"file_name": "train/1.png", "text": "top"}])
    jsonl(folder / "train/metadata.jsonl", [{"file_name": "./1.png", "text": "below"}])
    assert captions_of(folder) == {"train/1.png": ["top", "below"], "train/2.png": ["picture 1"]}


def test_names_from_other_systems(folder: Path) -> None:
    put(folder / "train" / "cafe\u0301.png")
    put(folder / "train" / "sub" / "x.png")
    put(folder / "train" / ".hidden.png")
    put(folder / ".cache" / "train.png")
    put(folder / "__MACOSX" / "a.png")
    rows = [{"file_name": "caf\u00e9.png", "text": "coffee"}, {"file_name": "sub\\x.png", "text": "slash"}]
    jsonl(folder / "train" / "metadata.jsonl", rows)
    assert captions_of(folder) == {"train/caf\u00e9.png": ["coffee"], "train/sub/x.png": ["slash"]}
    assert open_folder(str(folder), "train", View()).images([0, 1]).shape == (2, 32, 32, 3)


def test_links_are_followed_once(folder: Path, tmp_path: Path) -> None:
    put_captioned(tmp_path / "elsewhere", ["1.png"])
    (folder / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    assert captions_of(folder) == {"train/1.png": ["picture 0"]}


# ---- splits ----


def test_split_folders_and_their_other_names(folder: Path) -> None:
    put_captioned(folder, ["Train/1.png", "validation/2.png", "valid/3.png", "test/a/4.png"])
    assert {split: data.ids for split, data in all_splits(folder).items()} == {
        "train": ["Train/1.png"],
        "val": ["valid/3.png", "validation/2.png"],
        "test": ["test/a/4.png"],
    }


def test_heldout_is_its_folder_or_test_or_val(folder: Path) -> None:
    put_captioned(folder, ["train/1.png"])
    assert "no split 'heldout'" in error_of(lambda: open_folder(str(folder), "heldout", View()))
    for split in ("val", "test", "heldout"):
        put_captioned(folder, [f"{split}/1.png"])
        assert open_folder(str(folder), "heldout", View()).split == split


def test_seeded_split_is_disjoint_complete_and_near_its_shares(folder: Path) -> None:
    names = [f"{i:04d}.png" for i in range(600)]
    for name in names:
        (folder / name).touch()
    index = index_folder(folder)
    parts = dict(zip(names, index.splits(names, 0), strict=True))
    shares = [list(parts.values()).count(split) / 600 for split in ("train", "val", "test")]
    assert sum(shares) == 1 and 0.87 < shares[0] < 0.93 and 0.03 < shares[1] < 0.07 and 0.03 < shares[2] < 0.07
    assert list(parts.values()) != index.splits(names, 1)


def test_seeded_split_does_not_move_when_files_are_added(folder: Path) -> None:
    put_captioned(folder, [f"{i}.png" for i in range(120)])
    before = all_splits(folder, seed=3)
    assert sorted(name for data in before.values() for name in data.ids) == sorted(f"{i}.png" for i in range(120))
    put_captioned(folder, ["0.5.png", *(f"new/{i}.png" for i in range(40))])
    for split, data in all_splits(folder, seed=3).items():
        assert set(before[split].ids) <= set(data.ids)


def test_limit_takes_the_first_good_rows(folder: Path) -> None:
    put_captioned(folder, [f"train/{i}.png" for i in range(6)])
    (folder / "train/1.png").write_bytes(b"")
    with pytest.warns(
        UserWarning, match="skipped 1 image in split train .* cannot be decoded: train/1.png: the file is empty"
    ):
        data = open_folder(str(folder), "train", View(limit=3))
    assert data.ids == ["train/0.png", "train/2.png", "train/3.png"]


def test_pictures_outside_the_split_folders_are_counted(folder: Path) -> None:
    put_captioned(folder, ["train/1.png", "loose.png", "cars/2.png"])
    with pytest.warns(UserWarning, match="skipped 2 images outside the split folders .* cars/2.png, loose.png"):
        assert captions_of(folder) == {"train/1.png": ["picture 0"]}


# ---- pictures ----


def test_images_have_exact_pixels_in_the_order_asked_for(folder: Path) -> None:
    put_captioned(folder, [f"train/{i}.png" for i in range(5)])
    data = open_dataset(str(folder), "train", View(resolution=12))
    assert data.resolution == 12 and len(data) == 5
    for _ in range(2):  # decoded, then kept
        got = data.images([3, 0, 3, -1])
        assert got.dtype == np.uint8 and got.flags.writeable
        assert all((got[k] == picture(key)).all() for k, key in enumerate([3, 0, 3, 4]))
        got[:] = 0
    assert data.images([]).shape == (0, 12, 12, 3)
    with pytest.raises(IndexError):
        data.images([5])


def test_messy_pictures_open(folder: Path) -> None:
    train = folder / "train"
    put(train / "0.png").unlink()
    Image.fromarray(np.full((9, 5, 4), 0, np.uint8)).save(train / "alpha.png")
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(train / "deep.png")
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(train / "ink.jpg")
    Image.new("RGB", (8, 8), "white").convert("P").save(train / "palette.png")
    Image.new("RGB", (2, 900), "white").save(train / "strip.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.concatenate([np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)], 1)).save(
        train / "turned.jpg", exif=exif
    )
    write_txt(train, [(path.name, "x") for path in train.iterdir()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_folder(str(folder), "train", View(resolution=16, fit="pad"))
    got = dict(zip(data.ids, data.images(range(len(data))), strict=True))
    assert len(got) == 6 and not data.broken
    turned = got.pop("train/turned.jpg")
    assert turned[:6, 7:9].max() < 40 and turned[10:, 7:9].min() > 215
    for name, image_HWC in got.items():
        assert (image_HWC == 255).all(), name


@pytest.mark.parametrize("fit", ["center", "random", "squash", "pad"])
def test_fit_is_obeyed(fit: images.Fit, folder: Path) -> None:
    put(folder / "train/1.png", 0, 20, 50).with_suffix(".txt").write_text("wide")
    data = open_folder(str(folder), "train", View(resolution=20, fit=fit))
    got = data.images([0])[0]
    source = Image.fromarray(picture(0, 20, 50))
    if fit == "random":
        crops = [picture(0, 20, 50)[:, left : left + 20] for left in range(31)]
        assert [k for k in range(31) if (crops[k] == got).all()] not in ([], [15])
        assert (open_folder(str(folder), "train", View(20, "random")).images([0])[0] == got).all()
        assert (open_folder(str(folder), "train", View(20, "random", seed=5)).images([0])[0] != got).any()
    else:
        assert (got == images.fit(source, 20, fit)).all()


BROKEN = {
    "empty.png": (b"", "empty"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "not a PNG"),
    "cut.jpg": (b"", "truncated"),
    "dot.png": (b"", "1x1 pixels"),
    "gone.png": (b"", "No such file"),
}


def put_broken(train: Path) -> None:
    for name, (content, _) in BROKEN.items():
        put(train / name, 1, 64, 64)
        if name == "cut.jpg":
            (train / name).write_bytes((train / name).read_bytes()[:2000])
        elif name == "dot.png":
            put(train / name, 1, 1, 1)
        elif name == "gone.png":
            (train / name).unlink()
            (train / name).symlink_to(train / "nowhere.png")
        else:
            (train / name).write_bytes(content)
    write_txt(train, [(name, "broken") for name in BROKEN])


def test_broken_pictures_are_named_counted_and_left_out(folder: Path) -> None:
    put_captioned(folder, [f"train/{i}.png" for i in range(9)])
    put_broken(folder / "train")
    with pytest.warns(
        UserWarning, match=r"5 images in split train .* cannot be decoded: .*; .*; .* and 2 more"
    ) as caught:
        data = open_folder(str(folder), "train", View(resolution=12))
    assert len(caught) == 1
    assert data.ids == [f"train/{i}.png" for i in range(9)]
    reasons = dict(data.broken)
    assert reasons.keys() == {f"train/{name}" for name in BROKEN}
    for name, (_, reason) in BROKEN.items():
        assert reason in reasons[f"train/{name}"]
    assert data.images(range(9)).shape == (9, 12, 12, 3)


def test_mostly_broken_is_an_error_that_lists_the_first_five(folder: Path) -> None:
    put_captioned(folder, [f"train/{i}.png" for i in range(11)])
    for i in range(6):
        (folder / f"train/{i}.png").write_bytes(b"junk")
    message = error_of(lambda: open_folder(str(folder), "train", View()))
    assert "6 of 11 images" in message and "train/4.png" in message and "train/5.png" not in message
    put(folder / "train/5.png")
    with pytest.warns(UserWarning, match="5 images"):
        assert len(open_folder(str(folder), "train", View())) == 6


def test_a_picture_that_breaks_later_is_named(folder: Path) -> None:
    put_captioned(folder, [f"train/{i}.png" for i in range(4)])
    data = open_folder(str(folder), "train", View(resolution=12))
    (folder / "train/1.png").unlink()
    (folder / "train/2.png").write_bytes(b"replaced by text")
    for i in (1, 2):
        with pytest.raises(images.BrokenImage, match=f"train/{i}.png"):
            data.images([0, i, 3])
    assert (data.images([0, 3])[1] == picture(3)).all()


def test_kept_pictures_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_captioned(folder, [f"train/{i}.png" for i in range(5)])
    decoded: list[Path] = []
    decode = images.decode
    monkeypatch.setattr("t2i.data.encoded.MEMORY_BYTES", 2 * 12 * 12 * 3)
    monkeypatch.setattr("t2i.data.encoded.BLOCK_BYTES", 12 * 12 * 3)
    data = open_folder(str(folder), "train", View(resolution=12))
    monkeypatch.setattr(images, "decode", lambda source, side=None: decoded.append(source) or decode(source, side))
    for _ in range(3):
        assert all((a == picture(k)).all() for k, a in enumerate(data.images(range(5))))
    assert len(decoded) == 5 + 3 + 3
    assert [picture(k).tolist() for k in (3, 1, 3, 0)] == data.images([3, 1, 3, 0]).tolist()


def test_many_unknown_pictures_are_not_decoded_for_the_opening(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_captioned(folder, [f"train/{i}.png" for i in range(6)])
    (folder / "train/2.png").write_bytes(b"junk")
    in_the_past(folder)
    monkeypatch.setattr("t2i.data.folders.dataset.VERIFIED_AT_ONCE", 4)
    counted = count_decodes(monkeypatch)
    with pytest.warns(UserWarning, match="6 images of folder:.* have not been verified: after `t2i data check`"):
        data = open_folder(str(folder), "train", View())
    assert len(data) == 6 and counted == []
    before = data.fingerprint()
    check(folder)
    assert len(counted) == 6
    with pytest.warns(UserWarning, match="train/2.png: not a PNG"):
        checked = open_folder(str(folder), "train", View())
    assert len(checked) == 5 and len(counted) == 6 and checked.fingerprint() != before


# ---- large folders, kept as columns ----


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "LARGE_BYTES", 1)
    monkeypatch.setattr(table, "_ROWS_AT_ONCE", 3)


def put_messy_rows(folder: Path) -> None:
    names = ["train/1.png", "train/2.png", "train/sub/caf\u00e9.png", "val/3.png", "loose.png", "train/bare.png"]
    for key, name in enumerate(names):
        put(folder / name, key)
    rows = [
        {"file_name": "train/2.png", "text": " two\t spaces "},
        {"file_name": "./train//1.png", "text": "one"},
        {"file_name": "val\\3.png", "text": "thr\u00e9e"},
        {"file_name": "train/sub/cafe\u0301.png", "text": "x\u200by"},
        {"file_name": "train/2.png", "text": "again"},
        {"file_name": "train/2.png", "text": "again"},
        {"file_name": "train/lost.png", "text": "lost"},
        {"file_name": "train/bare.png", "text": " \u200b "},
        {"file_name": "loose.png", "text": "outside"},
    ]
    jsonl(folder / "metadata.jsonl", rows)
    jsonl(folder / "train/metadata.jsonl", [{"file_name": "1.png", "text": ["below", "", "one"]}])


def test_columns_hold_what_the_plain_reader_finds(folder: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    put_messy_rows(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        columns = {split: open_folder(str(folder), split, View(resolution=12)) for split in ("train", "heldout")}
        monkeypatch.setattr(table, "LARGE_BYTES", 2**40)
        plain = {split: open_folder(str(folder), split, View(resolution=12)) for split in ("train", "heldout")}
    assert all(isinstance(data._source, table.FolderTable) for data in columns.values())
    for split, data in columns.items():
        assert list(data.ids) == list(plain[split].ids) and data.split == plain[split].split
        # captions of one picture may come in another order: the files are read from the top down
        assert [set(own) for own in data.captions] == [set(own) for own in plain[split].captions]
        assert (data.images(range(len(data))) == plain[split].images(range(len(data)))).all()
    assert list(columns["train"].captions[1]) == ["two spaces", "again"]
    said = "\n".join(str(warning.message) for warning in caught)
    assert "1 caption in split train" in said and "train/lost.png" in said and "not been verified" in said


def test_columns_of_drawn_splits_are_the_plain_ones(folder: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"file_name": f"{i:03d}.png", "text": f"caption {i}"} for i in range(80)]
    for row in rows:
        (folder / row["file_name"]).write_bytes(b"not decoded")
    jsonl(folder / "metadata.jsonl", list(reversed(rows)))
    with pytest.warns(UserWarning, match="not been verified"):
        columns = [open_folder(str(folder), split, View(seed=4)) for split in ("train", "val", "test")]
    index = index_folder(folder)
    for data in columns:
        mine = [
            name
            for name, part in zip(index.entries, index.splits(list(index.entries), 4), strict=True)
            if part == data.split
        ]
        assert list(data.ids) == mine and [own for (own,) in data.captions] == [f"caption {int(n[:3])}" for n in mine]


def test_columns_are_kept_until_something_changes(folder: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder / "1.png")
    put(folder / "2.png", 2)
    jsonl(folder / "metadata.jsonl", [{"file_name": "1.png", "text": "one"}])
    read: list[Path] = []
    monkeypatch.setattr(table, "index_folder", lambda root: read.append(root) or index_folder(root))

    def ids() -> list[str]:
        parts = []
        for split in ("train", "val", "test"):
            with warnings.catch_warnings(), contextlib.suppress(InputError):
                warnings.simplefilter("ignore")
                parts += open_folder(str(folder), split, View()).ids
        return sorted(parts)

    assert ids() == ["1.png"] and len(read) == 1
    jsonl(folder / "metadata.jsonl", [{"file_name": f"{k}.png", "text": "longer"} for k in (1, 2)])
    assert ids() == ["1.png", "2.png"] and len(read) == 2
    (folder / "2.png").unlink()
    assert ids() == ["1.png"] and len(read) == 3


def test_what_a_check_found_broken_leaves_the_columns(folder: Path, large: None) -> None:
    for i in range(8):
        put(folder / f"train/{i}.png", i)
    (folder / "train/5.png").write_bytes(b"junk")
    jsonl(folder / "train/metadata.jsonl", [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(8)])
    in_the_past(folder)
    report = check(folder)
    assert [name for name, _ in report.broken] == ["train/5.png"] and report.splits == {"train": 7}
    with pytest.warns(UserWarning, match="skipped 1 image in .* cannot be decoded: train/5.png: not a PNG"):
        data = open_folder(str(folder), "train", View(resolution=12))
    assert "train/5.png" not in data.ids and len(data) == 7
    before = data.fingerprint()
    put(folder / "train/6.png", 60)
    assert data.fingerprint() != before
    put(folder / "train/5.png", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(open_folder(str(folder), "train", View())) == 8


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"file_name": "a.png", "text": "x"}\nnot json\n', "metadata.jsonl line 2 is not JSON"),
        (b'{"file_name": "a.png", "text": "x"}\n{"file_name": "b.png", "text": 3}', "must be a string"),
        ('{"file_name": "a.png", "text": "\u00e9"}'.encode("latin-1"), "line 1 is not UTF-8"),
        (b'{"file_name": "other.png", "text": "x"}', "name 1 image and none is there: not 'other.png', but 'a.png'"),
    ],
)
def test_mistakes_in_large_captions_files_are_named(content: bytes, expected: str, folder: Path, large: None) -> None:
    put(folder / "a.png")
    (folder / "metadata.jsonl").write_bytes(content)
    assert expected in error_of(lambda: open_folder(str(folder), "train", View()))


# ---- the verify pass and its cache ----


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted: list[int] = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda source, side=None: counted.append(1) or decode(source, side))
    return counted


def test_a_second_open_decodes_nothing_and_a_changed_file_is_seen(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_captioned(folder, [f"train/{i}.png" for i in range(6)])
    (folder / "train/5.png").write_bytes(b"junk")
    in_the_past(folder)
    before = sorted(folder.rglob("*"))
    counted = count_decodes(monkeypatch)
    with pytest.warns(UserWarning, match="cannot be decoded"):
        first = open_folder(str(folder), "train", View())
    assert len(counted) == 6 and sorted(folder.rglob("*")) == before and list(own_cache.rglob("*.arrow"))
    with pytest.warns(UserWarning, match="cannot be decoded"):
        second = open_folder(str(folder), "train", View())
    assert len(counted) == 6
    assert (second.ids, second.broken, second.fingerprint()) == (first.ids, first.broken, first.fingerprint())

    (folder / "train/4.png").write_bytes(b"junk")  # another size
    put(folder / "train/5.png", 5)  # another time
    with pytest.warns(UserWarning, match="cannot be decoded"):
        third = open_folder(str(folder), "train", View())
    assert len(counted) == 8 and third.ids[-1] == "train/5.png" and third.broken[0][0] == "train/4.png"


def test_a_file_written_just_now_is_verified_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # its time stamp may stay the same when it is written once more
    put_captioned(folder, ["train/0.png"])
    counted = count_decodes(monkeypatch)
    open_folder(str(folder), "train", View())
    open_folder(str(folder), "train", View())
    assert len(counted) == 2


def test_a_file_over_the_limit_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_captioned(folder, ["train/0.png", "train/1.png"])
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    with (folder / "train/1.png").open("ab") as file:
        file.write(b"x" * 5000)
    in_the_past(folder)
    counted: list[Path] = []
    read = images.read_limited
    monkeypatch.setattr(images, "read_limited", lambda path: counted.append(path) or read(path))
    for _ in range(2):
        with pytest.warns(UserWarning, match="cannot be decoded"):
            found = open_folder(str(folder), "train", View())
        assert [name for name, _ in found.broken] == ["train/1.png"]
        assert len([path for path in counted if path.name == "1.png"]) == 1


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other rules"])
def test_a_damaged_cache_is_built_again(
    damage: str, folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_captioned(folder, ["train/0.png"])
    in_the_past(folder)
    open_folder(str(folder), "train", View())
    (store,) = own_cache.rglob("*.arrow")
    content = store.read_bytes()
    old = content.replace(verified_index._RULES.encode(), b"1" + verified_index._RULES.encode()[1:])
    store.write_bytes({"empty": b"", "cut": content[:-20], "text": b"{}", "other rules": old}[damage])
    counted = count_decodes(monkeypatch)
    for _ in range(2):
        assert len(open_folder(str(folder), "train", View())) == 1
    assert len(counted) == 1


def test_a_cache_that_cannot_be_written_costs_a_warning(folder: Path, own_cache: Path) -> None:
    put_captioned(folder, ["train/0.png"])
    in_the_past(folder)
    own_cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot write .* set T2I_CACHE"):
        assert len(open_folder(str(folder), "train", View())) == 1


def test_fingerprint_tells_what_decides_the_rows(folder: Path, tmp_path: Path) -> None:
    def build(root: Path, key: int = 0, caption: str = "one") -> Path:
        put(root / "train/a.png", key)
        jsonl(root / "train/metadata.jsonl", [{"file_name": "a.png", "text": caption}])
        return root

    def fingerprint(root: Path, **view) -> str:
        return open_folder(str(root), "train", View(**view)).fingerprint()

    base = fingerprint(build(folder))
    assert base == fingerprint(build(tmp_path / "copy")) == fingerprint(folder, seed=9)
    changed = [
        fingerprint(build(tmp_path / "pixels", key=1)),
        fingerprint(build(tmp_path / "words", caption="two")),
        fingerprint(folder, resolution=64),
        fingerprint(folder, fit="squash"),
        fingerprint(folder, fit="random"),
        fingerprint(folder, fit="random", seed=9),
    ]
    assert len({base, *changed}) == 7


# ---- mistakes ----


def test_missing_and_empty_folders(folder: Path) -> None:
    assert "not found" in error_of(lambda: open_folder(str(folder / "none"), "train", View()))
    (folder / "notes.md").touch()
    assert "is a file" in error_of(lambda: open_folder(str(folder / "notes.md"), "train", View()))
    assert "no images" in error_of(lambda: open_folder(str(folder), "train", View()))
    (folder / "scan.tif").touch()
    assert "convert scan.tif to PNG" in error_of(lambda: open_folder(str(folder), "train", View()))


def test_pictures_without_captions(folder: Path) -> None:
    put(folder / "a.png")
    (folder / "captions.csv").touch()
    message = error_of(lambda: open_folder(str(folder), "train", View()))
    assert "1 image in" in message and "no captions, only captions.csv" in message and "metadata.jsonl" in message


def test_captions_for_missing_pictures(folder: Path) -> None:
    put(folder / "train/images/7.png")
    jsonl(folder / "train/metadata.jsonl", [{"file_name": f"{i}.png", "text": "x"} for i in (7, 8)])
    message = error_of(lambda: open_folder(str(folder), "train", View()))
    assert "2 images and none is there: not 'train/7.png', but 'train/images/7.png'" in message
    rows = [{"file_name": f"images/{i}.png", "text": "x"} for i in (7, 8)]
    jsonl(folder / "train/metadata.jsonl", rows)
    with pytest.warns(UserWarning, match="1 caption in split train .* without an image: train/images/8.png"):
        assert captions_of(folder) == {"train/images/7.png": ["x"]}


def test_a_txt_without_picture_is_counted_and_a_readme_is_not(folder: Path) -> None:
    put_captioned(folder, ["train/1.png"])
    (folder / "train/2.txt").write_text("alone")
    (folder / "train/README.txt").write_text("about")
    with pytest.warns(UserWarning, match=r"1 caption in split train .* without an image: train/2 \(of train/2.txt\)"):
        captions_of(folder)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "x"}\n\nnot json\n', "metadata.jsonl line 3 is not JSON"),
        ("metadata.jsonl", b'[{"file_name": "a.png", "text": "x"}]', "line 1 is a JSON list"),
        ("metadata.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("metadata.jsonl", b'{"image": "a.png", "text": "x"}', "no column 'file_name'; it has 'image', 'text'"),
        ("metadata.jsonl", b'{"file_name": "a.png", "prompt": "x"}', "no column 'text' or 'caption'"),
        (
            "metadata.jsonl",
            b'{"file_name": "a.png", "text": 3}',
            "'text' must be a string or a list of strings, got '3'",
        ),
        ("metadata.jsonl", b'{"file_name": 3, "text": "x"}', "'file_name' must name an image, got 3"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "x"}\n{"é'.encode("latin-1"),
            "line 2 is not UTF-8 (byte 0xe9)",
        ),
        ("metadata.csv", "file_name,text\na.png,x\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("metadata.csv", b"file,text\na.png,x\n", "no column 'file_name'; it has 'file', 'text'"),
        ("metadata.csv", b"file_name,text\na.png,a dog, a cat\n", "line 2 has 3 fields under 2 columns"),
        ("metadata.parquet", b"file_name,text\na.png,x\n", "not a parquet file"),
        ("a.txt", b"fine\n\xff\n", "a.txt line 2 is not UTF-8"),
    ],
)
def test_unreadable_captions_are_named(name: str, content: bytes, expected: str, folder: Path) -> None:
    put(folder / "a.png")
    (folder / name).write_bytes(content)
    message = error_of(lambda: open_folder(str(folder), "train", View()))
    assert expected in message and str(folder / name) in message
    report = check(folder)
    assert report.unreadable_captions == [message] and message in format_report(report)


def test_parquet_without_captions_column(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    put(folder / "a.png")
    pq.write_table(pa.table({"file_name": ["a.png"], "label": [3]}), folder / "metadata.parquet")
    message = error_of(lambda: open_folder(str(folder), "train", View()))
    assert "no column 'text' or 'caption'; it has 'file_name', 'label'" in message


def test_splits_that_are_not_there(folder: Path) -> None:
    put_captioned(folder, ["train/1.png", "test/1.png"])
    assert "which has: train, test" in error_of(lambda: open_folder(str(folder), "val", View()))
    assert "no split 'trian'" in error_of(lambda: open_folder(str(folder), "trian", View()))


def test_too_few_pictures_for_a_seeded_split(folder: Path) -> None:
    put_captioned(folder, ["1.png"])
    there, none = ("train", "val") if index_folder(folder).splits(["1.png"], 0) == ["train"] else ("val", "train")
    message = error_of(lambda: open_folder(str(folder), none, View()))
    assert f"no split '{none}'" in message and f"has: {there}" in message and "add images" in message


# ---- check ----


def test_check_counts_everything(folder: Path) -> None:
    put(folder / "train/1.png", 1, 10, 20)
    put(folder / "train/2.png", 2, 30, 40)
    put(folder / "train/copy.png", 1, 10, 20)
    put(folder / "train/bare.jpg", 3, 50, 60)
    put(folder / "train/bad.png").write_bytes(b"junk")
    put(folder / "val/1.png", 1, 10, 20)
    put(folder / "loose.png", 4)
    (folder / "train/scan.tiff").touch()
    rows = [
        {"file_name": "1.png", "text": ["A red dog", "one"]},
        {"file_name": "2.png", "text": "a  red dog"},
        {"file_name": "copy.png", "text": "four words are here"},
        {"file_name": "bad.png", "text": "never counted"},
        {"file_name": "lost.png", "text": "lost"},
    ]
    jsonl(folder / "train/metadata.jsonl", rows)
    jsonl(folder / "val/metadata.jsonl", [{"file_name": "1.png", "text": "one"}])
    report = check(folder)
    assert not report.seeded and report.splits == {"train": 3, "val": 1} and report.images == 7
    assert report.formats == {"PNG": 5, "JPEG": 1}
    assert report.width == (12, 20, 60) and report.height == (10, 11, 50)
    assert report.captions == 5 and report.caption_words == (1, 3, 4) and report.caption_characters == (3, 9, 19)
    assert report.captions_per_image == (1, 1, 2)
    assert [name for name, _ in report.broken] == ["train/bad.png"]
    assert report.images_without_captions == ["loose.png", "train/bare.jpg"]
    assert report.captions_without_images == ["train/lost.png"]
    assert report.outside_splits == ["loose.png"] and report.unsupported == ["train/scan.tiff"]
    assert report.duplicate_images == [["train/1.png", "train/copy.png", "val/1.png"]] == report.shared_images
    assert report.duplicate_captions == [("a red dog", 2), ("one", 2)]
    assert report.shared_captions == [("one", ["train", "val"])]
    text = format_report(report)
    for part in (
        "train 3, val 1",
        "min 12, median 20, max 60",
        "train/lost.png",
        "train/bad.png: not a PNG",
        "2 x one",
    ):
        assert part in text


def test_check_of_a_clean_folder_finds_nothing_and_spares_training_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_captioned(folder, [f"{i}.png" for i in range(60)])
    in_the_past(folder)
    counted = count_decodes(monkeypatch)
    report = check(folder)
    assert report.seeded and sum(report.splits.values()) == 60
    assert format_report(report).endswith("no faults were found")
    open_folder(str(folder), "train", View())
    assert len(counted) == 60


def test_check_reports_a_folder_without_captions(folder: Path) -> None:
    put(folder / "a.png")
    report = check(folder)
    assert report.splits == {} and report.caption_words is None and report.images_without_captions == ["a.png"]
    assert "captions             0" in format_report(report)


# ---- export ----


def test_export_and_open_give_the_same_pixels_and_captions(folder: Path, tmp_path: Path) -> None:
    for key in range(3):
        put(folder / f"train/{key}.png", key, 20, 30)
    rows = [
        {"file_name": "0.png", "text": ["a", "b é"]},
        *({"file_name": f"{k}.png", "text": f"c {k}"} for k in (1, 2)),
    ]
    jsonl(folder / "train/metadata.jsonl", rows)
    data = open_folder(str(folder), "train", View(resolution=16))
    out = tmp_path / "deep" / "out"
    export_splits({"train": data, "heldout": data}, out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
    names = ["00000.png", "00001.png", "00002.png", "metadata.jsonl"]
    assert sorted(path.name for path in (out / "train").iterdir()) == names
    written = [json.loads(line) for line in (out / "train/metadata.jsonl").read_text("utf-8").splitlines()]
    assert written[:2] == [{"file_name": "00000.png", "text": ["a", "b é"]}, {"file_name": "00001.png", "text": "c 1"}]
    for split in ("train", "heldout"):
        again = open_folder(str(out), split, View(resolution=16))
        assert (again.split, again.captions) == (split, data.captions)
        assert (again.images(range(3)) == data.images(range(3))).all()


def test_export_writes_any_dataset(tmp_path: Path) -> None:
    shapes = open_dataset("shapes-2", "val", View(resolution=32, limit=300))
    export_splits({"val": shapes}, tmp_path / "out")
    again = open_dataset(f"folder:{tmp_path / 'out'}", "val", View(resolution=32))
    assert [own[0] for own in again.captions] == [clean_caption(own[0]) for own in shapes.captions]
    assert (again.images(range(300)) == shapes.images(range(300))).all()


def test_export_refuses_a_folder_that_holds_something(folder: Path, tmp_path: Path) -> None:
    put_captioned(folder, ["train/1.png"])
    data = open_folder(str(folder), "train", View())
    assert "holds files" in error_of(lambda: export(data, folder))
    assert "is a file" in error_of(lambda: export(data, folder / "train/1.png"))
    (tmp_path / "empty").mkdir()
    export(data, tmp_path / "empty")
    assert (tmp_path / "empty/metadata.jsonl").exists()


def test_an_export_that_fails_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    put_captioned(folder, ["train/1.png", "train/2.png"])
    data = open_folder(str(folder), "train", View())
    (folder / "train/2.png").unlink()
    before = sorted(tmp_path.iterdir())
    assert "train/2.png" in error_of(lambda: export(data, tmp_path / "out"))
    assert sorted(tmp_path.iterdir()) == before
