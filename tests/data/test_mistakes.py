"""Mistakes of users in folders, captions and shards, odd files, and damaged caches: read correctly, or refused by name."""

import io
import json
import os
import random
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from builders.hostile_data import in_the_past
from t2i import images
from t2i.cli.app import main
from t2i.data import View, open_dataset, parse_address
from t2i.data.captions import captions_of
from t2i.data.folders import table
from t2i.data.folders.dataset import open_folder
from t2i.data.tools.check import check
from t2i.errors import InputError
from t2i.files import open_regular, read_json, text_lines

SMALL = View(16)


def encoded(key: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(key).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def put(folder: Path, count: int = 40, below: str = "", suffix: str = ".png") -> list[str]:
    (folder / below).mkdir(parents=True, exist_ok=True)
    names = [f"{key:02d}{suffix}" for key in range(count)]
    for key, name in enumerate(names):
        (folder / below / name).write_bytes(encoded(key))
    return names


def caption(folder: Path, names: list[str], file: str = "metadata.jsonl", **row: object) -> None:
    rows = [{"file_name": name, "text": f"photo {name[:2]}"} | row for name in names]
    (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def refusal(address: str, split: str = "train") -> str:
    with pytest.raises(InputError) as raised, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_dataset(address, split, SMALL)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def coco(root: Path, captions: list[object], names: list[str] | None = None) -> Path:
    names = names or put(root, len(captions), "train2017", ".jpg")
    (root / "annotations").mkdir(parents=True)
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": i, "caption": text} for i, text in enumerate(captions)],
    }
    (root / "annotations/captions_train2017.json").write_text(json.dumps(content))
    return root


# ---- what is beside captioned images decides nothing ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.csv", b"run,score\n1,2\n"),
        ("captions_blip.json", b'[{"image": "00.png", "caption": "x"}]'),
        ("captions_val2017.json", b'{"images": []}'),
        ("images.txt", b"1 a/b.jpg\n"),
        ("state.json", b'{"_data_files": []}'),
        ("dataset_dict.json", b'{"splits": []}'),
        ("region_descriptions.json", b'[{"regions": []}]'),
        ("Flickr8k.token.txt", b"a.jpg#0\tx\n"),
        ("data.tar", b"\0" * 1024),
        ("scores.parquet", b"PAR1"),
    ],
)
@pytest.mark.parametrize("below", ["", "images"])
def test_captions_that_are_there_win(name: str, content: bytes, below: str, folder: Path) -> None:
    caption(folder / below, put(folder, below=below))
    (folder / name).write_bytes(content)
    assert parse_address(str(folder))[:2] == ("folder", str(folder))
    assert open_dataset(str(folder), "train", SMALL).captions[0][0].startswith("photo")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.csv", b"run,score\n1,2\n"),
        ("captions_val2017.json", b'[{"image": "a"}]'),
        ("images.txt", b"00.png\n"),
        ("state.json", b'{"step": 3}'),
        ("dataset_dict.json", b"{}"),
    ],
)
def test_the_mark_of_a_format_is_its_content(name: str, content: bytes, folder: Path) -> None:
    put(folder, below="images")
    (folder / name).write_bytes(content)
    assert parse_address(str(folder)).kind == "folder"


def test_the_message_names_the_folder_address(folder: Path) -> None:
    put(folder, below="mine")
    (folder / "results.csv").write_text("image_name| comment_number| comment\n1.jpg| 0| a dog\n")
    message = refusal(str(folder))
    assert f"read as flickr30k:{folder}, as results.csv is there" in message and f"say folder:{folder}" in message


# ---- mistakes, told alike by training and by `t2i data check` -----------------------------------------------------------


def metadata_array(folder: Path) -> None:
    put(folder)
    (folder / "metadata.json").write_text(json.dumps([{"file_name": "00.png", "text": "x"}]))


def text_folder(folder: Path) -> None:
    for name in put(folder, below="images"):
        (folder / "text").mkdir(exist_ok=True)
        (folder / "text" / name).with_suffix(".txt").write_text("x")


def other_suffix(folder: Path) -> None:
    for name in put(folder):
        (folder / name).with_suffix(".caption").write_text("x")


def class_folders(folder: Path) -> None:
    put(folder, 60, "cats")
    put(folder, 60, "red_dogs")


MISTAKES: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda f: caption(f, put(f), "metadata.json1"),
        "metadata.json1 is not read under that name; rename it to metadata.jsonl",
    ),
    (
        lambda f: caption(f, put(f), "metadata.json"),
        "metadata.json is not read under that name; rename it to metadata.jsonl",
    ),
    (lambda f: caption(f, put(f), "metadata.jsonl.txt"), "metadata.jsonl.txt is not read under that name"),
    (metadata_array, "write it as metadata.jsonl, one object per line"),
    (lambda f: caption(f, [f"/home/me/{name}" for name in put(f)]), "is an absolute path; write file_name relative to"),
    (lambda f: caption(f, [f"C:\\{name}" for name in put(f)]), "is an absolute path"),
    (lambda f: caption(f, [name.lower() for name in put(f, suffix=".PNG")]), "in the same upper and lower case"),
    (lambda f: caption(f, put(f, below="images")), "not '00.png', but 'images/00.png'"),
    (text_folder, "move text/00.txt to images/00.txt"),
    (other_suffix, "00.caption and similar files are not read; rename them to .txt"),
    (class_folders, "?caption=a photo of a {class}"),
    (lambda f: coco(f / "outer", ["a dog"] * 9), "name coco:"),
]


@pytest.mark.parametrize("case", range(len(MISTAKES)))
def test_a_mistake_is_told_with_its_fix_and_status_2(
    case: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, says = MISTAKES[case]
    make(folder)
    assert says in (message := refusal(f"folder:{folder}"))
    assert main(["data", "check", f"folder:{folder}"]) == 2
    assert capsys.readouterr().err.strip().endswith(message)


@pytest.mark.parametrize("value", [None, 3, 1.5, True, ["a"], [None], {"a": 1}])
def test_a_caption_that_is_no_text_is_named(value: object, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(folder, ["a dog", value, "a cat"])
    message = refusal(f"coco:{folder}")
    assert f"a caption of 'train2017/01.jpg' is {json.dumps(value)}, not text" in message
    assert main(["data", "check", f"coco:{folder}"]) == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["coco", "flickr8k"])
def test_a_check_before_the_images_are_there(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "coco":
        coco(folder, ["a dog"] * 3, ["a.jpg", "b.jpg", "c.jpg"])
    else:
        (folder / "Flickr8k.token.txt").write_text("a.jpg#0\ta dog\n")
    for split in ("train", "heldout"):
        assert "and none is there: looked for 'a.jpg'" in refusal(f"{kind}:{folder}", split)
    assert main(["data", "check", f"{kind}:{folder}"]) == 2 and "none is there" in capsys.readouterr().err


def test_an_empty_split_and_an_outer_folder_are_told(folder: Path) -> None:
    caption(folder, put(folder, 10))
    assert "val" in check(folder).empty_splits
    outer = folder / "outer"
    for split in ("train", "val"):
        caption(outer / "inner" / split, put(outer, 5, f"inner/{split}"))
    with pytest.warns(UserWarning, match=f"is ignored as a split, as it is not at the top; name folder:{outer}/inner"):
        open_dataset(f"folder:{outer}", "train", SMALL)


def test_class_folders_become_captions_when_asked(folder: Path) -> None:
    class_folders(folder)
    (folder / "cats/00.txt").write_text("its own")
    captions = {}
    for split in ("train", "val", "test"):
        data = open_dataset(f"folder:{folder}?caption=a photo of a {{class}}", split, SMALL)
        captions |= dict(zip(data.ids, data.captions, strict=True))
    assert captions.pop("cats/00.png") == ("its own",)
    assert {own for own in captions.values()} == {("a photo of a cats",), ("a photo of a red dogs",)}
    assert "must contain {class}" in refusal(f"folder:{folder}?caption=a photo")


# ---- captions read as they were meant -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ("['a dog', 'a cat']", ["a dog", "a cat"]),
        ('["a dog", "a cat"]', ["a dog", "a cat"]),
        ("""["it's", 'b']""", ["it's", "b"]),
        ("('a dog', 'a cat')", ["a dog", "a cat"]),
        ("['a']", ["a"]),
        ("[]", []),
        ("[a dog] runs", ["[a dog] runs"]),
        ("(a dog)", ["(a dog)"]),
        ("{a dog} runs", ["{a dog} runs"]),
        (["x", " ", "x"], ["x"]),
        (None, []),
    ],
)
def test_a_list_in_a_cell_is_a_list(cell: object, captions: list[str]) -> None:
    assert captions_of(cell) == captions


@pytest.mark.parametrize(
    "cell",
    [
        "['a dog' 'a cat']",
        "['a dog', 'a ca",
        "[1, 2]",
        "['a', 3]",
        "[['a'], ['b']]",
        "[None]",
        "{'a', 'b'}",
        '{"a": "b"}',
        3,
        [3],
        {"a": 1},
    ],
)
def test_a_cell_that_is_no_caption_is_refused(cell: object) -> None:
    with pytest.raises(ValueError, match="must be a string or a list of strings, got"):
        captions_of(cell)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("large", [False, True])
def test_a_column_of_splits_is_obeyed(suffix: str, large: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas

    monkeypatch.setattr(table, "LARGE_BYTES", 1 if large else 2**40)
    names = put(folder, 10)
    splits = ["train"] * 6 + ["Validation"] * 2 + ["test"] * 2
    frame = pandas.DataFrame({"file_name": names, "text": ["x"] * 10, "split": splits})
    write = {"csv": frame.to_csv, "parquet": frame.to_parquet, "jsonl": frame.to_json}[suffix]
    options = {"csv": {"index": False}, "jsonl": {"orient": "records", "lines": True}}.get(suffix, {})
    write(folder / f"metadata.{suffix}", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {split: list(open_dataset(f"folder:{folder}", split, SMALL).ids) for split in ("train", "val", "test")}
    assert found == {"train": names[:6], "val": names[6:8], "test": names[8:]}


@pytest.mark.parametrize("column", ["Split", "SPLIT ", "set", "Partition", "subset"])
@pytest.mark.parametrize("packed", [False, True])
def test_other_names_of_a_column_of_splits(column: str, packed: bool, folder: Path) -> None:
    import pandas

    names, splits = put(folder, 10), pandas.Series(["train"] * 6 + ["val"] * 2 + ["TEST"] * 2, dtype="category")
    rows = {"image": [encoded(i) for i in range(10)]} if packed else {"file_name": names}
    rows |= {"text": [f"c {i}" for i in range(10)], column: splits}
    pandas.DataFrame(rows).to_parquet(folder / ("rows.parquet" if packed else "metadata.parquet"))
    address = f"parquet:{folder}/rows.parquet" if packed else f"folder:{folder}"
    for split, own in (("train", range(6)), ("val", (6, 7)), ("test", (8, 9))):
        assert [caption for (caption,) in open_dataset(address, split, SMALL).captions] == [f"c {i}" for i in own]


def test_rows_in_an_unknown_split_are_told(folder: Path) -> None:
    import pandas

    splits = ["train"] * 6 + ["dev"] * 3 + [None]
    pandas.DataFrame({"file_name": put(folder, 10), "text": ["x"] * 10, "split": splits}).to_csv(
        folder / "metadata.csv", index=False
    )
    with pytest.warns(UserWarning, match="skipped 4 images of .* whose row names no known split .train, val, test"):
        assert len(open_dataset(f"folder:{folder}", "train", SMALL)) == 6


def test_a_captions_file_without_a_caption_is_named(folder: Path) -> None:
    names = put(folder, 4)
    for text in ("", "\n".join(json.dumps({"file_name": name, "text": None}) for name in names)):
        (folder / "metadata.jsonl").write_text(text)
        assert "metadata.jsonl has no caption that is not empty" in refusal(f"folder:{folder}", "train")


@pytest.mark.parametrize("suffix", ["tif", "HEIC", "avif"])
def test_a_folder_of_images_in_another_format_is_told(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / f"a.{suffix}").write_bytes(b"x")
    assert f"such as below/a.{suffix}; convert them to PNG or JPEG" in refusal(str(tmp_path), "train")


def test_rows_of_a_parquet_file_marked_test_are_not_trained_on(folder: Path) -> None:
    import pandas

    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    rows = {"image": [encoded(i) for i in range(10)], "text": [f"c {i}" for i in range(10)], "split": splits}
    pandas.DataFrame(rows).to_parquet(folder / "rows.parquet")
    for split, own in (("train", range(6)), ("val", (6, 7)), ("test", (8, 9))):
        data = open_dataset(f"parquet:{folder}", split, SMALL)
        assert [caption for (caption,) in data.captions] == [f"c {i}" for i in own]
        assert len(data.images(range(len(data)))) == len(own)
    assert "as in ?split=test" in refusal(f"parquet:{folder}", "heldout2")


def test_captions_with_lost_letters_are_told(folder: Path) -> None:
    caption(folder, put(folder), text="caf\ufffd")
    with pytest.warns(UserWarning, match="captions of .* with U\\+FFFD in place of letters"):
        open_dataset(f"folder:{folder}", "train", SMALL)
    assert len(check(folder).damaged_captions) == 40


# ---- shards ----------------------------------------------------------------------------------------------------------------


def shard(path: Path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return f"shards:{path}"


def samples(image: str, text: str, content: bytes = b"caption", count: int = 30) -> list[tuple[str, bytes]]:
    return [m for i in range(count) for m in ((f"{i}.{image}", encoded(i)), (f"{i}.{text}", content))]


def ids(address: str) -> list[str]:
    found: list[str] = []
    for split in ("train", "val", "test"):
        found += list(open_dataset(address, split, SMALL).ids)
    return sorted(found)


@pytest.mark.parametrize("key", ["split", "Split", "subset"])
@pytest.mark.parametrize("beside", [False, True])
def test_the_split_in_the_json_of_a_sample_is_obeyed(key: str, beside: bool, tmp_path: Path) -> None:
    members = []
    for i, split in enumerate(["train"] * 6 + ["val"] * 2 + ["TEST"] * 2):
        row = {"caption": f"c {i}", key: split}
        members += [(f"{i}.png", encoded(i)), (f"{i}.json", json.dumps(row).encode())]
        members += [(f"{i}.txt", f"c {i}".encode())] if beside else []
    address = shard(tmp_path / "a.tar", members)
    for split, own in (("train", range(6)), ("val", (6, 7)), ("test", (8, 9))):
        data = open_dataset(address, split, SMALL)
        assert [caption for (caption,) in data.captions] == [f"c {i}" for i in own]
        assert len(data.images(range(len(data)))) == len(own) and data.place(0).startswith(str(tmp_path / "a.tar"))


def test_keys_with_a_dot_are_samples(tmp_path: Path) -> None:
    dotted = [m for i in range(60) for m in ((f"v1.{i}.png", encoded(i)), (f"v1.{i}.txt", b"x"))]
    assert len(ids(shard(tmp_path / "a.tar", [*dotted, *samples("png", "txt", count=60)]))) == 120


@pytest.mark.parametrize(
    ("members", "says", "options"),
    [
        (samples("png", "caption"), ".caption (30)", "?text=caption"),
        (samples("png", "json", b'{"prompt": "a cat"}'), "JSON key 'prompt' (30)", "?text=prompt"),
        (
            [
                m
                for i in range(30)
                for m in ((f"{i}.in.png", encoded(i)), (f"{i}.out.png", encoded()), (f"{i}.txt", b"x"))
            ],
            ".in.png (30), .out.png (30)",
            "?image=in.png",
        ),
        (samples("avif", "txt"), "images in .avif are not read, convert them to PNG or JPEG", ""),
        ([*samples("png", "txt"), ("3.jpg", encoded())], "say which suffix is meant, as in", "?image=png"),
        (
            [*samples("png", "txt"), ("3.png", encoded())],
            "two images with the key '3', .png and .png; remove one of",
            "",
        ),
    ],
)
def test_a_shard_says_what_it_holds_and_the_advice_works(
    members: list[tuple[str, bytes]], says: str, options: str, tmp_path: Path
) -> None:
    address = shard(tmp_path / "a.tar", members)
    assert says in refusal(address)
    if options:
        assert len(open_dataset(address + options, "train", SMALL)) > 20


def test_no_split_is_advised_that_is_not_there(tmp_path: Path) -> None:
    assert "?split=" not in refusal(shard(tmp_path / "part.tar", samples("png", "txt")), "trian")


# ---- odd and hostile files -----------------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [fifo, zero, sparse])
def test_only_plain_files_of_a_sensible_size_are_read(make: Callable[[Path], None], folder: Path) -> None:
    path = folder / "x"
    make(path)
    with pytest.raises(OSError, match=r"not a plain file|over the limit"):
        open_regular(path, 1 << 30)
    with pytest.raises(InputError, match=r"cannot read .*(not a plain file|over the limit)"):
        read_json(path)
    with pytest.raises((InputError, OSError), match=r"not a plain file|bytes long"):
        list(text_lines(path))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("make", [fifo, zero, sparse])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("coco", "annotations/captions_train2017.json"),
        ("flickr8k", "Flickr8k.token.txt"),
        ("flickr30k", "results.csv"),
        ("cub", "images.txt"),
        ("vg", "region_descriptions.json"),
        ("shards", "a.tar"),
        ("parquet", "a.parquet"),
        ("hub", "dataset_dict.json"),
        ("folder", "metadata.jsonl"),
        ("folder", "metadata.parquet"),
        ("folder", "00.txt"),
    ],
)
def test_an_odd_file_hangs_nothing(kind: str, name: str, make: Callable[[Path], None], folder: Path) -> None:
    (folder / "annotations").mkdir()
    (folder / "text").mkdir()
    put(folder, 2)
    make(folder / name)
    assert str(folder) in refusal(f"{kind}:{folder}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["data", "check", str(folder)]) == 2


@pytest.mark.parametrize("name", ["../../x.png", "a/../../x.png", "/../x.png", "a/../../../etc/x.jpg"])
def test_no_list_leads_out_of_its_folder(name: str, folder: Path) -> None:
    (folder.parent / "x.png").write_bytes(encoded())
    names = [*put(folder, 3, "train2017", ".jpg"), name]
    coco(folder, ["a dog"] * 4, names)
    assert f"outside {folder}" in refusal(f"coco:{folder}")


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"splits": 3}', '{"splits": ["../../x"]}', "[" * 100_000])
def test_odd_lists_of_a_saved_data_set_are_told(content: str, folder: Path) -> None:
    (folder / "dataset_dict.json").write_text(content)
    assert str(folder) in refusal(f"hub:{folder}")


@pytest.mark.parametrize("size", [1 << 20, 5 << 20])
@pytest.mark.parametrize("packed", [False, True])
def test_metadata_of_any_size_breaks_no_image(size: int, packed: bool, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("prompt", "x" * size, zip=packed)
    info.add_itxt("more", "y" * size, zip=packed)
    profile = random.Random(0).randbytes(size)
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png", pnginfo=info, icc_profile=profile)
    assert images.decode(tmp_path / "a.png").size == (20, 10)


def test_a_photo_of_a_telephone_is_read(tmp_path: Path) -> None:
    Image.new("L", (12_000, 9_000)).save(tmp_path / "a.jpg")
    Image.new("L", (16_320, 12_240)).save(tmp_path / "b.jpg")
    Image.new("L", (16_384, 13_000)).save(tmp_path / "c.jpg")
    with warnings.catch_warnings(action="error"):
        assert images.decode(tmp_path / "a.jpg", 64).size == (1500, 1125)
        assert images.decode(tmp_path / "b.jpg", 64).size == (2040, 1530)
        with pytest.raises(images.BrokenImage, match="16384x13000 pixels, over the limit of 210,000,000 pixels"):
            images.decode(tmp_path / "c.jpg", 64)


def test_two_spellings_of_one_name_are_two_images(folder: Path) -> None:
    for key, name in enumerate(("e\u0301.png", "\u00e9.png", "u\u0308.png")):
        (folder / "train").mkdir(exist_ok=True)
        (folder / "train" / name).write_bytes(encoded(key))
    caption(folder / "train", ["e\u0301.png", "\u00e9.png", "u\u0308.png"])
    data = open_dataset(f"folder:{folder}", "train", View(12))
    assert list(data.ids) == ["train/e\u0301.png", "train/\u00e9.png", "train/\u00fc.png"]
    assert len({image.tobytes() for image in data.images(range(3))}) == 3


# ---- caches ---------------------------------------------------------------------------------------------------------------


def same_size_and_time(path: Path, content: bytes) -> None:
    before = path.stat()
    path.write_bytes(content.ljust(before.st_size, b"\0")[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("kind", ["image", "metadata", "large", "shards", "parquet"])
def test_a_file_replaced_under_its_size_and_time_is_seen(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas

    monkeypatch.setattr(table, "LARGE_BYTES", 1 if kind == "large" else 2**40)
    (folder / "train").mkdir()
    if kind == "shards":
        path, address = folder / "train.tar", shard(folder / "train.tar", samples("bmp", "txt", b"first"))
        other = samples("bmp", "txt", b"again")
    elif kind == "parquet":
        path, address = folder / "train.parquet", f"parquet:{folder}"
        frame = pandas.DataFrame({"image": [encoded(0)] * 30, "text": ["first"] * 30})
        frame.to_parquet(path, compression=None)
    else:
        names = put(folder, 30, "train")
        caption(folder / "train", names, text="first")
        path = folder / "train" / ("00.png" if kind == "image" else "metadata.jsonl")
        address = f"folder:{folder}"
    in_the_past(folder)

    def seen() -> tuple[str, str, list[list[str]]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = open_dataset(address, "train", SMALL)
        return data.digest(), data.fingerprint(), [list(own) for own in data.captions]

    before = seen()
    assert seen() == before
    if kind == "image":
        content = bytearray(encoded(99))
        same_size_and_time(
            path, encoded(99)[:-12] + b"\0" * max(0, path.stat().st_size - len(content)) + encoded(99)[-12:]
        )
    elif kind == "shards":
        shard(folder / "other.tar", other)
        same_size_and_time(path, (folder / "other.tar").read_bytes())
        (folder / "other.tar").unlink()
    else:
        same_size_and_time(path, path.read_bytes().replace(b"first", b"again"))
    after = seen()
    assert after[0] != before[0] and after[1] != before[1]
    if kind != "image":
        assert {caption for own in after[2] for caption in own} == {"again"}


@pytest.mark.parametrize("kind", ["folder", "large", "shards", "parquet"])
def test_a_flipped_bit_in_the_cache_is_never_silently_wrong(
    kind: str, folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas

    monkeypatch.setattr(table, "LARGE_BYTES", 1 if kind == "large" else 2**40)
    if kind == "shards":
        address = shard(folder / "train.tar", samples("png", "txt"))
    elif kind == "parquet":
        rows = {"image": [encoded(i) for i in range(20)], "text": [f"c {i}" for i in range(20)]}
        pandas.DataFrame(rows).to_parquet(folder / "train.parquet")
        address = f"parquet:{folder}"
    else:
        caption(folder / "train", put(folder, 20, "train"))
        address = f"folder:{folder}"
    in_the_past(folder)

    def seen() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = open_dataset(address, "train", SMALL)
            return list(data.ids), [list(own) for own in data.captions], data.images(range(len(data))).tobytes()

    expected = seen()
    rng = random.Random(0)
    for _ in range(40):
        (path,) = own_cache.rglob("*.arrow")
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            found = seen()
        except images.BrokenImage as error:
            assert "damaged and is removed" in str(error)
            found = seen()
        assert found == expected


def test_the_digest_is_of_contents(folder: Path, tmp_path: Path) -> None:
    import shutil

    caption(folder / "train", put(folder, 5, "train"))
    digests = [
        open_folder(place, "train", View(size)).digest() for place in (str(folder), f"{folder}/") for size in (16, 32)
    ]
    shutil.copytree(folder, tmp_path / "moved")
    digests.append(open_folder(str(tmp_path / "moved"), "train", SMALL).digest())
    assert len(set(digests)) == 1
    caption(folder / "train", put(folder, 5, "train"), text="other")
    assert open_folder(str(folder), "train", SMALL).digest() not in digests
    shapes = [
        open_dataset("shapes-1", split, View(size, limit=20)).digest()
        for split, size in (("train", 32), ("train", 64), ("val", 32))
    ]
    assert shapes[0] == shapes[1] != shapes[2]


# ---- `data check` and training agree -----------------------------------------------------------------------------------


def parquet(path: Path, split: str | None = None, count: int = 12) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"image": encoded(key), "caption": f"photo {key}"} for key in range(count)]
    rows = [row | ({} if split is None else {"split": split}) for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), path)


def whole_shard(path: Path, count: int = 12, text: str = "txt") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key in range(count):
            for suffix, content in (("png", encoded(key)), (text, b"photo %d" % key)):
                info = tarfile.TarInfo(f"{key:03d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def several_shards(folder: Path, *names: str) -> None:
    for name in names:
        whole_shard(folder / f"{name}.tar")


def split_folders(folder: Path, *names: str) -> None:
    for name in names:
        caption(folder / name, put(folder, below=name))


def broken_images(folder: Path, share: float) -> None:
    names = put(folder)
    caption(folder, names)
    for name in names[: int(share * len(names))]:
        (folder / name).write_bytes(b"no image")


ODD_FOLDERS: dict[str, Callable[[Path], object]] = {
    "shards of an unknown split": lambda folder: several_shards(folder, "train-extra-unused", "dev-00000"),
    "shards of test alone": lambda folder: several_shards(folder, "test-00000"),
    "shards of val and test": lambda folder: several_shards(folder, "val-00000", "test-00000"),
    "shards without a split": lambda folder: several_shards(folder, "00000", "00001"),
    "shards of dev and train": lambda folder: several_shards(folder, "dev-00000", "train-00000"),
    "shards with captions in .md": lambda folder: whole_shard(folder / "a.tar", text="md"),
    "shards of one image": lambda folder: whole_shard(folder / "a.tar", 1),
    "parquet of test alone": lambda folder: parquet(folder / "data" / "test-00000-of-00001.parquet"),
    "parquet of validation alone": lambda folder: parquet(folder / "validation-00000-of-00001.parquet"),
    "parquet without a split": lambda folder: parquet(folder / "a.parquet"),
    "parquet with rows of test alone": lambda folder: parquet(folder / "a.parquet", "test"),
    "parquet with rows of an unknown split": lambda folder: parquet(folder / "a.parquet", "dev"),
    "parquet with rows without a split": lambda folder: parquet(folder / "a.parquet", ""),
    "folders val and test": lambda folder: split_folders(folder, "val", "test"),
    "folder test alone": lambda folder: split_folders(folder, "test"),
    "folder train alone": lambda folder: split_folders(folder, "train"),
    "folders of upper case": lambda folder: split_folders(folder, "Train", "Val"),
    "folder dev": lambda folder: split_folders(folder, "dev"),
    "half broken": lambda folder: broken_images(folder, 0.5),
    "most broken": lambda folder: broken_images(folder, 0.8),
    "all broken": lambda folder: broken_images(folder, 1.0),
    "no captions": lambda folder: put(folder),
    "one image": lambda folder: caption(folder, put(folder, 1)),
    "two images": lambda folder: caption(folder, put(folder, 2)),
    "captions of no image": lambda folder: (put(folder), caption(folder, ["x.png", "y.png"])),
    "captions that are empty": lambda folder: caption(folder, put(folder), text=""),
    "captions that are numbers": lambda folder: caption(folder, put(folder), text=7),
    "captions not in UTF-8": lambda folder: (put(folder), (folder / "metadata.jsonl").write_bytes(b'{"\xff')),
    "coco without images": lambda folder: coco(folder, ["a"] * 3, ["a.jpg", "b.jpg", "c.jpg"]),
    "coco of train": lambda folder: coco(folder, ["a photo"] * 30),
    "an empty folder": lambda folder: None,
    "a text file": lambda folder: (folder / "a.txt").write_text("words"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_check_refuses_what_training_refuses(name: str, folder: Path, capsys) -> None:
    ODD_FOLDERS[name](folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = main(["data", "check", str(folder)])
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        try:
            open_dataset(str(folder), "train", SMALL)
            refused = ""
        except InputError as error:
            refused = str(error)
    assert (status, len(told)) == ((2, 1) if refused else (0, 0)), (refused, told)


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "<NA>", " nan "])
def test_a_caption_that_a_table_lacks_is_none(word: str, folder: Path) -> None:
    names = put(folder)
    rows = [f"{name},{word if name < '03' else 'a nan bread'}" for name in names]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    with pytest.warns(UserWarning, match="without a caption"):
        data = open_dataset(str(folder), "train", SMALL)
    assert {text for own in data.captions for text in own} == {"a nan bread"}
    caption(folder, names, text="nan")  # JSON has null
    assert "nan" in open_dataset(str(folder), "train", SMALL).captions[0]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("array(['a'], dtype='<U1')", ["a"]),
        ('array(["it\'s"])', ["it's"]),
        ("array of cats (three)", ["array of cats (three)"]),
        ("array(1)", ["1"]),
    ],
)
def test_an_array_that_was_written_as_text_is_a_list(text: str, read: list[str]) -> None:
    assert captions_of(text) == read


def test_a_second_suffix_is_told(folder: Path) -> None:
    for name in put(folder):
        (folder / f"{name}.txt").write_text("a photo")
    assert "00.png.txt and similar files are not read; rename it to 00.txt, and the others likewise" in refusal(
        str(folder)
    )


def test_lines_that_cross_chunks_are_whole(folder: Path, monkeypatch) -> None:
    from t2i import files

    text = "\ufeff" + "".join(f"é{i}\r\n" for i in range(200)) + "end é"
    (folder / "a.txt").write_text(text, "utf-8", newline="")
    for chunk in (1, 2, 3, 7, 1 << 20):
        monkeypatch.setattr(files, "_CHUNK", chunk)
        assert list(text_lines(folder / "a.txt")) == [*(f"é{i}" for i in range(200)), "end é"]
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 5)
    monkeypatch.setattr(files, "_CHUNK", 2)
    (folder / "a.txt").write_text("ab\n" + "c" * 20)
    with pytest.raises(InputError, match="a.txt line 2 is over 5 bytes long"):
        list(text_lines(folder / "a.txt"))
