"""Published layouts and addresses."""

import hashlib
import io
import json
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders import published_layouts as layouts
from builders.commands import error_of
from builders.hostile_data import in_the_past
from t2i import images
from t2i.cli import app
from t2i.data import DATASETS, Dataset, View, open_dataset, parse_address
from t2i.data.loader import Loader
from t2i.data.packed.shards import expand_braces
from t2i.errors import InputError

SMALL = View(resolution=16)


def error_at(address: object, split: str = "train") -> str:
    return error_of(lambda: open_dataset(str(address), split, SMALL))


def splits_of(address: object, view: View = SMALL) -> dict[str, Dataset]:
    """Returns the existing splits."""
    found = {}
    for split in ("train", "val", "test"):
        try:
            found[split] = open_dataset(str(address), split, view)
        except InputError:
            continue
    return found


def sizes_of(address: object) -> dict[str, int]:
    return {split: len(data) for split, data in splits_of(address).items()}


def warned(call: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught]


# ---- every kind: what the protocol asks for ----


def test_a_layout_is_there_for_every_kind() -> None:
    assert set(layouts.LAYOUTS) | {"shapes", "emoji"} == set(DATASETS)


@pytest.mark.parametrize("kind", list(layouts.LAYOUTS))
def test_every_format_gives_pictures_that_fit_their_captions(kind: str, tmp_path: Path) -> None:
    root = layouts.LAYOUTS[kind](tmp_path / "data")
    bare = parse_address(str(root))
    assert bare.kind == kind and (kind == "folder" or f"read as {kind}:{root}, as " in bare.notice)
    opened = splits_of(f"{kind}:{root}")
    assert len(opened["train"]) >= 16
    every: list[str] = []
    for data in opened.values():
        pictures = data.images(range(len(data)))
        assert pictures.shape == (len(data), 16, 16, 3) and pictures.dtype == np.uint8
        for image_HWC, captions in zip(pictures, data.captions, strict=True):
            assert captions and all(caption == caption.strip() for caption in captions)
            mean = (image_HWC[:, :8] if kind == "vg" else image_HWC).mean(axis=(0, 1))
            named = min((name for name in layouts.COLOURS if name in captions[0]), key=captions[0].find)
            assert np.abs(mean - layouts.RGB[named]).max() < 15
        every += list(data.ids)
        assert (data.images([-1, 0])[1] == pictures[0]).all()
    assert len(every) == len(set(every))
    again = open_dataset(str(root), "train", SMALL)
    assert (
        again.fingerprint() == opened["train"].fingerprint() != open_dataset(str(root), "train", View(32)).fingerprint()
    )
    assert list(again.ids) == list(opened["train"].ids)
    assert len(open_dataset(str(root), "train", View(16, limit=5))) == 5


@pytest.mark.parametrize(
    ("write", "sizes", "first"),
    [
        (layouts.coco, {"train": 24, "val": 6}, "train2017/000000000009.jpg"),
        (lambda root: layouts.coco(root, 2014), {"train": 24, "val": 6}, "train2014/COCO_train2014_000000000009.jpg"),
        (layouts.karpathy_coco, {"train": 19, "val": 2, "test": 3}, "train2014/COCO_train2014_000000000000.jpg"),
        (layouts.flickr8k, {"train": 16, "val": 4, "test": 4}, "Flicker8k_Dataset/1000268201_2b5b08cb0e.jpg"),
        (layouts.flickr30k_csv, {"train": 16, "val": 4, "test": 4}, "flickr30k_images/flickr30k_images/1000092795.jpg"),
        (layouts.flickr30k_karpathy, {"train": 16, "val": 4, "test": 4}, "flickr30k-images/1000092795.jpg"),
        (layouts.parquet, {"train": 24, "val": 6}, "train-00000-of-00002/0"),
        (layouts.saved_to_disk, {"train": 24, "val": 6}, "train/0"),
    ],
)
def test_published_splits_are_obeyed(write, sizes: dict[str, int], first: str, tmp_path: Path) -> None:
    root = write(tmp_path / "data")
    assert sizes_of(root) == sizes
    assert open_dataset(str(root), "train", SMALL).ids[0] == first
    assert open_dataset(str(root), "heldout", SMALL).split == ("test" if "test" in sizes else "val")


def test_which_split_is_for_training_can_be_said_and_no_other_reads_it(tmp_path: Path) -> None:
    root = layouts.coco(tmp_path / "data")
    layouts.coco(root, 2014, train=18, val=4)
    assert sizes_of(f"coco:{root}") == {"train": 24, "val": 6}
    assert sizes_of(f"coco:{root}?split=train2014") == {"train": 18, "val": 4}
    assert sizes_of(f"{root}?split=val2014") == {"train": 4}
    assert "no split 'train2015' (did you mean train2017?)" in error_at(f"coco:{root}?split=train2015")
    assert "no split 'karpathy'; there are: train2017, val2017" in error_at(f"coco:{root}?split=karpathy")
    layouts.karpathy_coco(root)
    assert sizes_of(f"coco:{root}?split=karpathy") == {"train": 19, "val": 2, "test": 3}
    assert sizes_of(f"coco:{root}?split=train2014") == {"train": 18, "val": 4}
    saved = layouts.parquet(tmp_path / "rows")
    for name in ("validation", "val"):
        assert sizes_of(f"parquet:{saved}?split={name}") in ({"train": 6}, {"train": 5, "val": 1})
    assert "no split 'tes'" in error_at(f"parquet:{saved}?split=tes")
    assert "the data does not list splits" in error_at(f"flickr30k:{layouts.flickr30k(tmp_path / 'f')}?split=train")


def test_a_share_of_train_is_for_validation_where_nothing_else_is(tmp_path: Path) -> None:
    root = layouts.flowers(tmp_path / "data")
    opened = splits_of(root)
    assert {split: len(data) for split, data in opened.items()} == {"train": 28, "val": 2, "test": 10}
    assert all("yellow" in own[0] for own in opened["test"].captions), "the classes of the test are never shown"
    assert not any("yellow" in own[0] for split in ("train", "val") for own in opened[split].captions)
    other = splits_of(root, View(16, seed=3))
    assert set(other["val"].ids) != set(opened["val"].ids) and list(other["test"].ids) == list(opened["test"].ids)
    assert sum(map(len, splits_of(layouts.flowers(tmp_path / "drawn", classes=False)).values())) == 40


def test_birds_split_by_class_or_by_picture(tmp_path: Path) -> None:
    assert sizes_of(layouts.cub(tmp_path / "a")) == {"train": 24, "test": 8}
    root = layouts.cub(tmp_path / "b", classes=False)
    sizes = sizes_of(root)
    assert sizes["test"] == 16 and sizes["train"] + sizes.get("val", 0) == 16
    (root / "CUB_200_2011" / "train_test_split.txt").unlink()
    assert "looked for train_test_split.txt; found classes.txt" in error_at(f"cub:{root}")


def test_captions_read_as_their_authors_wrote_them(tmp_path: Path) -> None:
    data = open_dataset(str(layouts.flickr8k_kaggle(tmp_path / "a")), "train", SMALL)
    assert (
        data.captions[0][-1] == 'A man says "hello" , twice .' and data.captions[0][2] == "Something red , and grain ."
    )
    data = open_dataset(str(layouts.flickr30k_csv(tmp_path / "b")), "train", SMALL)
    assert data.captions[3][4] == "A dog runs across the grass ." and len(data.captions[3]) == 5
    data = open_dataset(str(layouts.coco(tmp_path / "c")), "train", SMALL)
    assert list(data.captions[5]) == layouts.captions(5)
    for version in (1.0, 1.2):
        data = open_dataset(str(layouts.visual_genome(tmp_path / f"v{version}", version)), "train", SMALL)
        assert list(data.captions[0]) == ["a red wall. a green window. a knob."]


def test_captions_of_pictures_that_are_not_there_are_counted(tmp_path: Path) -> None:
    root = layouts.flickr8k(tmp_path / "a", lists=False)
    told = " ".join(message for split in ("train", "val", "test") for message in warned(
        lambda split=split: splits_of(root)))  # fmt: skip
    assert "1 caption in split" in told and "2258277193_586949ec62.jpg.1" in told
    root = layouts.coco(tmp_path / "b")
    (root / "train2017" / "000000000009.jpg").unlink()
    (root / "train2017" / "000000000016.jpg").write_bytes(b"\xff\xd8 no picture")
    messages = warned(lambda: open_dataset(str(root), "train", SMALL))
    assert any("1 caption in split train" in m and "000000000009.jpg" in m for m in messages)
    assert any("1 image in split train" in m and "cannot be decoded" in m for m in messages)
    assert len(open_dataset(str(root), "train", SMALL)) == 22


# ---- Visual Genome ----


def test_regions_are_cut_out_of_their_pictures(tmp_path: Path) -> None:
    root = layouts.visual_genome(tmp_path / "data")
    opened = splits_of(f"vg:{root}?regions=crop")
    train = opened["train"]
    assert train.ids[0] == "VG_100K/2315353.jpg#23153530" and list(train.captions[0]) == ["a red wall"]
    shown = train.images([0, 1])
    for image_HWC, name in zip(shown, ("red", "green"), strict=True):
        assert np.abs(image_HWC.mean(axis=(0, 1)) - layouts.RGB[name]).max() < 15
    assert not any("knob" in own[0] for own in train.captions), "9 pixels are no picture"
    assert (
        sum("knob" in own[0] for own in open_dataset(f"vg:{root}?regions=crop&min_side=9", "train", SMALL).captions)
        > 30
    )
    parts = [{name.partition("#")[0] for name in data.ids} for data in opened.values()]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 40, "a picture's regions are in one split"
    assert len(open_dataset(f"vg:{root}?regions=crop", "train", View(16, limit=3))) == 3
    assert train.fingerprint() != open_dataset(f"vg:{root}", "train", SMALL).fingerprint()


def test_region_descriptions_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = layouts.visual_genome(tmp_path / "data")
    whole = [list(own) for own in open_dataset(str(root), "train", SMALL).captions]
    monkeypatch.setattr("t2i.data.published.visual_genome._CHUNK", 7)
    assert [list(own) for own in open_dataset(str(root), "train", SMALL).captions] == whole
    path = root / "region_descriptions.json"
    path.write_text(path.read_text()[:-40])
    assert "is cut off or not JSON" in error_at(root)


# ---- shards ----


def test_shards_by_range_pattern_folder_and_single_file(tmp_path: Path) -> None:
    root = layouts.shards(tmp_path / "data", count=3)
    ids = {
        place: [name for data in splits_of(f"shards:{root}{place}").values() for name in data.ids]
        for place in ("/{00000..00002}.tar", "/*.tar", "", "/0000{0,1,2}.tar")
    }
    assert len({tuple(sorted(own)) for own in ids.values()}) == 1 and len(ids[""]) == 57
    assert sum(sizes_of(root / "00001.tar").values()) == 19
    assert sum(sizes_of(f"{root}/{{00000..00001}}.tar").values()) == 38
    message = error_at(f"shards:{root}/{{00000..00009}}.tar")
    assert "00003.tar is not there (7 of 10 are missing); found 00000.tar, 00001.tar, 00002.tar" in message
    assert expand_braces("a{08..10}-{x,y}.tar")[1:3] == ["a08-y.tar", "a09-x.tar"]
    assert "no such folder" in error_at(f"shards:{tmp_path}/nowhere/{{00..01}}.tar")
    assert "must run upwards" in error_at(f"shards:{root}/{{5..1}}.tar")
    assert "neither a range" in error_at(f"shards:{root}/{{5}}.tar")
    assert "copy them to a local disk" in error_at("shards:pipe:cat /etc/passwd")


def test_shards_are_split_by_their_names_or_drawn(tmp_path: Path) -> None:
    root = layouts.shards(tmp_path / "data")
    drawn = splits_of(root)
    assert sum(map(len, drawn.values())) == 38 and len(drawn["train"]) > 30
    for name, part in (("00000", "train"), ("00001", "val")):
        (root / f"{name}.tar").rename(root / f"pairs-{part}-{name}.tar")
    assert sizes_of(root) == {"train": 19, "val": 19}
    (root / "test").mkdir()
    (root / "pairs-val-00001.tar").rename(root / "test" / "00001.tar")
    assert sizes_of(root).keys() - {"val"} == {"train", "test"}


def test_captions_of_a_shard_from_txt_json_and_the_parquet_beside_it(tmp_path: Path) -> None:
    beside = open_dataset(f"shards:{layouts.shards(tmp_path / 'beside', in_tar=False)}", "train", SMALL)
    inside = open_dataset(f"shards:{layouts.shards(tmp_path / 'inside')}", "train", SMALL)
    assert [list(own) for own in beside.captions] == [list(own) for own in inside.captions]
    with tarfile.open(tmp_path / "own.tar", "w") as tar:
        layouts.add(tar, "./a/0.JPG", layouts.picture(0))
        layouts.add(tar, "./a/0.txt", b"\xef\xbb\xbfone\r\n\r\n two \n")
        layouts.add(tar, "a/1.seg.png", b"of no use")
        layouts.add(tar, "a/1.json", json.dumps({"captions": ["three", " ", "four", 5]}).encode())
        layouts.add(tar, "a/1.jpg", layouts.picture(1))
        layouts.add(tar, "1.input.jpg", layouts.picture(2))
        layouts.add(tar, "1.edit.txt", b"five")
    data = open_dataset(str(tmp_path / "own.tar"), "train", SMALL)
    assert dict(zip(data.ids, map(list, data.captions), strict=True)) == {
        "own/a/0": ["one", "two"],
        "own/a/1": ["three", "four"],
    }
    data = open_dataset(f"{tmp_path}/own.tar?image=input.jpg&text=edit.txt", "train", SMALL)
    assert list(data.ids) == ["own/1"] and data.captions[0] == ["five"]


def test_an_index_is_kept_and_made_anew_when_the_shard_changes(tmp_path: Path, own_cache: Path) -> None:
    root = layouts.shards(tmp_path / "data", count=1)
    in_the_past(root)
    before = open_dataset(str(root), "train", SMALL)
    kept = {path: path.stat().st_mtime_ns for path in (own_cache / "shards").iterdir()}
    assert len(kept) == 1
    assert open_dataset(str(root), "train", SMALL).fingerprint() == before.fingerprint()
    assert {path: path.stat().st_mtime_ns for path in (own_cache / "shards").iterdir()} == kept
    expected = before.fingerprint()
    next(iter(kept)).unlink()  # the opened one stays mapped
    next(iter(kept)).write_bytes(b"damaged")
    assert open_dataset(str(root), "train", SMALL).fingerprint() == expected == before.fingerprint()
    with tarfile.open(root / "00000.tar", "a") as tar:
        layouts.add(tar, "new.jpg", layouts.picture(77))
        layouts.add(tar, "new.txt", b"new")
    with pytest.raises(
        images.BrokenImage, match="00000.tar: 000000000: the shard is newer than its index; start again"
    ):
        before.images([0])
    opened = splits_of(root)
    assert sum(map(len, opened.values())) == 20 and opened["train"].fingerprint() != before.fingerprint()
    loader = Loader(before, 4, seed=0)
    assert "the shard is newer than its index" in error_of(lambda: [next(loader) for _ in range(9)])


def test_the_order_of_shards_is_that_of_any_data_and_needs_no_workers(tmp_path: Path) -> None:
    data = open_dataset(str(layouts.shards(tmp_path / "data")), "train", SMALL)
    here, there = Loader(data, 5, seed=1), Loader(data, 5, seed=1, num_workers=2)
    for _ in range(12):
        a, b = next(here), next(there)
        assert (a.rows == b.rows).all() and bool((a.images_BHWC == b.images_BHWC).all())


def hostile(path: Path) -> Path:
    """Writes a shard with one good sample among bad members of every kind."""
    with tarfile.open(path, "w") as tar:
        layouts.add(tar, "good.jpg", layouts.picture(1))
        layouts.add(tar, "good.txt", b"a green field")
        layouts.add(tar, "bad/../../../evil.jpg", layouts.picture(2))
        layouts.add(tar, "/etc/evil.jpg", layouts.picture(2))
        layouts.add(tar, "evil.pickle", b"cos\nsystem\n(S'touch /tmp/evil'\ntR.")
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
            ("disk.jpg", tarfile.BLKTYPE),
            ("tty.jpg", tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        sparse = tarfile.TarInfo("sparse.jpg")
        sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**50)}
        sparse.size = 512
        tar.addfile(sparse, io.BytesIO(b"1\n0\n0\n".ljust(512, b"\0")))
        layouts.add(tar, "broken.jpg", b"\xff\xd8 not a picture")
        layouts.add(tar, "broken.txt", b"a caption")
        layouts.add(tar, "latin.jpg", layouts.picture(3))
        layouts.add(tar, "latin.txt", "café".encode("latin-1"))
        layouts.add(tar, "bare.jpg", layouts.picture(4))
        layouts.add(tar, "words.txt", b"no picture")
    return path


def test_a_hostile_shard_is_walked_and_what_is_bad_is_counted(tmp_path: Path) -> None:
    path = hostile(tmp_path / "a.tar")
    (told,) = warned(lambda: open_dataset(str(path), "train", SMALL))
    for what in (
        "2 links",
        "3 members of a special kind",
        "1 sparse member",
        "2 names outside the folder",
        "1 caption in another encoding than UTF-8",
        "2 images without a caption",
        "1 caption without an image",
    ):
        assert what in told, (what, told)
    found = {name: data for data in splits_of(path).values() for name in data.ids}
    assert set(found) == {"a/good", "a/broken"} and sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "cache"]
    data = found["a/broken"]
    with pytest.raises(images.BrokenImage, match="a.tar: broken: UnidentifiedImageError|a.tar: broken: not a PNG"):
        data.images([list(data.ids).index("a/broken")])


def _header(name: str, size: int, kind: bytes = b"0") -> bytes:
    member = tarfile.TarInfo(name)
    member.type = kind
    raw = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = (b"\x80" if size >= 0 else b"\xff") + (size % 2**88).to_bytes(11, "big")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


@pytest.mark.parametrize(
    "tail",
    [
        _header("big.jpg", 2**60),
        _header("back.jpg", -1024),
        _header("x", 2**40, b"x"),
        _header("././@LongLink", 2**33, b"L"),
        b"\xff" * 512,
        _header("cut.jpg", 10**6) + b"x" * 1000,
    ],
    ids=["huge", "backwards", "pax", "longlink", "noise", "cut"],
)
def test_headers_that_lie_end_the_shard_and_cost_nothing(tail: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key in range(40):
            layouts.add(tar, f"{key:03d}.jpg", layouts.picture(key))
            layouts.add(tar, f"{key:03d}.txt", b"a caption")
        end = tar.offset
    whole = (tmp_path / "a.tar").read_bytes()[:end]
    (tmp_path / "a.tar").write_bytes(whole + tail)
    told = warned(lambda: open_dataset(f"shards:{tmp_path}/a.tar", "train", SMALL))
    assert len(told) == 1 and ("damaged place" in told[0] or "cut off" in told[0])
    assert sum(sizes_of(tmp_path / "a.tar").values()) == 40


def test_a_picture_beyond_the_limit_is_broken_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        layouts.add(tar, "a.jpg", layouts.picture(1) + b"\0" * 5000)
        layouts.add(tar, "a.txt", ("word " * 400_000).encode())
    monkeypatch.setattr("t2i.data.packed.shards.MAX_BYTES", 4000)
    data = open_dataset(str(tmp_path / "a.tar"), "train", SMALL)
    with pytest.raises(images.BrokenImage, match="more than the limit of 4,000 bytes"):
        data.images([0])
    assert len(data.captions[0][0]) <= 4096


# ---- tables ----


def test_columns_are_chosen_by_name_and_paths_are_not_followed(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"photo": layouts.picture(key), "title": [f"one {key}", "two"], "n": key} for key in range(20)]
    rows += [{"photo": b"", "title": ["x"], "n": 1}, {"photo": layouts.picture(1), "title": [" "], "n": 2}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    message = error_at(tmp_path / "a.parquet")
    assert "no column 'image' or 'img'" in message and "it has photo, title, n; say which with ?image=NAME" in message
    assert "no column 'titel' (did you mean title?)" in error_at(f"{tmp_path}/a.parquet?image=photo&text=titel")
    assert "column 'n' is int64, not the bytes of images" in error_at(f"{tmp_path}/a.parquet?image=n&text=title")
    address = f"{tmp_path}/a.parquet?image=photo&text=title"
    (told,) = warned(lambda: open_dataset(address, "train", SMALL))
    assert "1 row without the bytes of an image" in told and "1 row without a caption" in told
    data = open_dataset(address, "train", SMALL)
    assert all(len(own) == 2 for own in data.captions) and sum(sizes_of(address).values()) == 20
    secret = layouts.folder(tmp_path / "elsewhere") / "000.jpg"
    table = pa.Table.from_pylist([{"image": {"bytes": None, "path": str(secret)}, "text": "x"}])
    pq.write_table(table.cast(pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "text": pa.string()})),
                   tmp_path / "paths.parquet")  # fmt: skip
    assert "holds no image with a caption, but 1 row without the bytes" in error_at(tmp_path / "paths.parquet")


def test_a_data_set_of_the_hub_is_fetched_by_the_library_whole_or_streamed(tmp_path: Path, monkeypatch) -> None:
    """Without a network, the library reads a folder by the same calls."""
    import datasets

    root = layouts.parquet(tmp_path / "rows")
    load = datasets.load_dataset
    asked = []

    def local(name, config, revision, streaming):
        asked.append((name, config, revision, streaming))
        return load(str(root), streaming=streaming, cache_dir=str(tmp_path / "hf"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    fetched = splits_of("hub:org/name")
    assert {split: len(data) for split, data in fetched.items()} == {"train": 24, "val": 6}
    assert asked[0] == ("org/name", None, "main", False)
    streamed = open_dataset("hub:org/name?streaming=true&config=c&revision=v2", "train", SMALL)
    assert asked[-1] == ("org/name", "c", "v2", True)
    assert [list(own) for own in streamed.captions] == [list(own) for own in fetched["train"].captions]
    assert (streamed.images(range(24)) == fetched["train"].images(range(24))).all()
    few = splits_of("hub:org/name?streaming=true&rows=4")
    assert {split: len(data) for split, data in few.items()} == {"train": 4, "val": 4}
    assert "needs streaming=true" in error_at("hub:org/name?rows=4")


def test_a_data_set_that_cannot_be_fetched_is_told_in_one_line() -> None:
    message = error_at("hub:nobody/nothing")
    assert "data hub:nobody/nothing cannot be fetched (" in message and "check name and network" in message
    assert "there is no folder /nowhere/x" in error_at("hub:/nowhere/x")


# ---- addresses ----


def test_addresses_are_read(tmp_path: Path) -> None:
    assert parse_address("shapes-2")[:2] == ("shapes", "2")
    assert parse_address("coco:/a/b?split=train2014")[:3] == ("coco", "/a/b", {"split": "train2014"})
    assert parse_address("shards:/a/{00..11}.tar")[:2] == ("shards", "/a/{00..11}.tar")
    assert str(parse_address("vg:/a?regions=crop&min_side=3")) == "vg:/a?regions=crop&min_side=3"
    odd = layouts.folder(tmp_path / "what?really=yes")
    assert parse_address(str(odd))[:3] == ("folder", str(odd), {})
    assert parse_address(f"folder:{odd}").place == str(odd)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("coc:/a", "no kind 'coc' (did you mean coco?); known: shapes, folder, coco"),
        ("nowhere", "not found: give shapes-1"),
        ("coco:{root}?spilt=train2014", "coco has no option 'spilt' (did you mean split?); it takes split"),
        ("folder:{root}?split=train", "folder has no option 'split'; it takes caption"),
        ("shapes-2?size=3", "shapes has no option 'size'; it takes none"),
        ("vg:{root}?regions=corp", "option regions must be one of concat, crop (did you mean crop?)"),
        ("vg:{root}?min_side=-3", "option min_side must be a whole number, got '-3'"),
        ("hub:a/b?streaming=yes", "option streaming must be true or false, got 'yes'"),
        ("coco:{root}?split", "'split' after `?` must read key=value"),
        ("coco:{root}?split=a&split=b", "'split=b' after `?` occurs twice"),
        ("coco:{root}/none", "is not there; name the folder that holds the data set"),
        ("", "data '' names no place; give an address such as shapes-2, photos/ or coco:/path"),
        ("  ", "names no place"),
        ("vqa2:", "data 'vqa2:' names no place"),
        ("coco:?split=train2014", "names no place"),
    ],
)
def test_a_wrong_address_names_the_nearest_right_one(address: str, says: str, tmp_path: Path) -> None:
    assert says in error_at(address.format(root=tmp_path))


def test_a_path_where_nothing_is_known_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "notes.doc").touch()
    message = error_at(tmp_path / "data")
    assert "annotations/captions_*.json" in message and "(coco)" in message and "found notes.doc, raw/" in message
    for name, says in (
        ("pairs.tar.gz", "is a packed file; unpack it"),
        ("notes.doc", "is a file, not a folder"),
        ("annotations/captions_train2017.json", f"name the folder above it: coco:{tmp_path}/data"),
    ):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).touch()
        assert says in error_at(tmp_path / "data" / name)


def test_the_command_line_says_what_a_path_was_taken_for(tmp_path: Path, capsys) -> None:
    root = layouts.coco(tmp_path / "data")
    assert app.main(["data", "export", str(root), str(tmp_path / "out"), "--size", "16", "-n", "3"]) == 0
    assert f"read as coco:{root}, as annotations/captions_*.json is there" in capsys.readouterr().err
    assert app.main(["data", "export", f"coco:{root}", str(tmp_path / "out2"), "--size", "16", "-n", "3"]) == 0
    assert "read as" not in capsys.readouterr().err


# ---- bad input ----


def broken_trees(tmp: Path) -> list[tuple[str, str]]:
    """Returns (address, words of the error message)."""
    found: list[tuple[str, str]] = []

    def tree(
        name: str, write: Callable[[Path], Path], spoil: Callable[[Path], object], says: str, tail: str = ""
    ) -> None:
        root = write(tmp / name)
        spoil(root)
        kind = name.partition("-")[0]
        found.append((f"{kind}:{root}{tail}", says))

    def rewrite(path: str, change: Callable[[str], str], encoding: str = "utf-8") -> Callable[[Path], object]:
        return lambda root: (root / path).write_text(change((root / path).read_text("utf-8")), encoding)

    def drop(path: str) -> Callable[[Path], object]:
        return lambda root: [p.unlink() for p in root.glob(path)]

    captions = "annotations/captions_train2017.json"
    tree("coco-wrong", layouts.flowers, lambda r: 0, "no captions: looked for annotations/captions_train2017.json or")
    tree("coco-no-pictures", layouts.coco, drop("train2017/*"), "names 24 images and none is there: looked for '0000")
    tree("coco-cut", layouts.coco, rewrite(captions, lambda t: t[:-9]), "is not valid JSON (")
    tree("coco-other", layouts.coco, rewrite(captions, lambda t: "[]"), "no images with file_name, and annotations")
    tree("coco-latin", layouts.coco, rewrite(captions, lambda t: t.replace("A red", "À red"), "latin-1"),
         "captions_train2017.json line 1 is not UTF-8 (byte 0xc0)")  # fmt: skip
    tree("coco-mute", layouts.coco, rewrite(captions, lambda t: json.dumps(json.loads(t) | {"annotations": []})),
         "has no caption for the 24 images of split train")  # fmt: skip
    tree(
        "flickr8k-wrong",
        layouts.coco,
        lambda r: 0,
        "no captions: looked for dataset_flickr8k.json or Flickr8k.token.txt",
    )
    tree("flickr8k-latin", layouts.flickr8k, rewrite("Flickr8k_text/Flickr8k.token.txt", lambda t: t + "a.jpg#0\té\n", "latin-1"),
         "is not UTF-8 (byte 0xe9); re-save the file as UTF-8")  # fmt: skip
    tree("flickr8k-tabs", layouts.flickr8k, rewrite("Flickr8k_text/Flickr8k.token.txt", lambda t: t.replace("\t", " ")),
         "Flickr8k.token.txt line 1: '1000268201_2b5b08cb0e.jpg#0 A red field .' is not")  # fmt: skip
    tree("flickr30k-bars", layouts.flickr30k_csv, rewrite("flickr30k_images/results.csv", lambda t: t.replace("|", ";")),
         "results.csv line 2: '1000092795.jpg; 0; A red field .' is not")  # fmt: skip
    tree("cub-mute", layouts.cub, drop("text/*/*"), "no captions in")
    tree("cub-list", layouts.cub, rewrite("CUB_200_2011/images.txt", lambda t: t + "33\n"), "images.txt line 33 is not")
    tree("flowers-mute", layouts.flowers, drop("text_c10/*/*"), "no captions in")
    tree(
        "vg-other",
        layouts.visual_genome,
        rewrite("region_descriptions.json", lambda t: '{"a": 1}'),
        "is not a JSON array",
    )
    tree("vg-rows", layouts.visual_genome, rewrite("region_descriptions.json", lambda t: t.replace('"phrase"', '"text"')),
         "no regions with region_id, x, y, width, height and phrase")  # fmt: skip
    tree("shards-none", layouts.flowers, lambda r: 0, "looked for *.tar and */*.tar; found jpg/, testclasses.txt")
    tree(
        "shards-empty",
        layouts.shards,
        lambda r: tarfile.open(r / "00001.tar", "w").close(),
        "shard {root}/00001.tar is empty",
    )
    tree("shards-zero", layouts.shards, lambda r: (r / "00000.tar").write_bytes(b""), "00000.tar is not a tar file (")
    tree(
        "shards-noise",
        layouts.shards,
        lambda r: (r / "00000.tar").write_bytes(b"hello" * 999),
        "00000.tar is not a tar file (",
    )
    tree("shards-packed", layouts.shards, lambda r: (r / "00000.tar").write_bytes(b"\x1f\x8b\x08" + b"x" * 999),
         "is packed, and cannot be read at any place; unpack it first: gunzip FILE")  # fmt: skip

    def twice(root: Path) -> None:
        with tarfile.open(root / "00000.tar", "a") as tar:
            layouts.add(tar, "000000003.png", b"x")

    tree("shards-twice", layouts.shards, twice, "two images with the key '000000003', .jpg and .png; rename one")
    tree("shards-beside", lambda r: layouts.shards(r, in_tar=False), lambda r: (r / "00000.parquet").write_bytes(b"x" * 99),
         "00000.parquet is not a parquet file")  # fmt: skip
    tree("parquet-noise", layouts.parquet, lambda r: (r / "data" / "train-00000-of-00002.parquet").write_bytes(b"PAR1" * 9),
         "train-00000-of-00002.parquet is not a parquet file")  # fmt: skip
    tree("parquet-none", layouts.coco, lambda r: 0, "no parquet files at")
    tree("hub-state", layouts.saved_to_disk, lambda r: (r / "train" / "state.json").unlink(), "state.json is not there")
    tree(
        "hub-arrow",
        layouts.saved_to_disk,
        lambda r: next((r / "train").glob("*.arrow")).write_bytes(b"x"),
        "is not an Arrow",
    )
    tree("coco-split", layouts.coco, lambda r: 0, "no split 'train2014'", "?split=train2014")
    return found


def test_bad_trees_are_told_in_one_line(tmp_path: Path, capsys) -> None:
    cases = broken_trees(tmp_path)
    for address, says in cases:
        message = error_at(address)
        root = address.partition(":")[2].partition("?")[0]
        assert says.replace("{root}", root) in message, (address, message)
    for address, says in cases[:1] + cases[-5:]:
        assert app.main(["data", "export", address, str(tmp_path / "out")]) == 2
        shown = capsys.readouterr().err.strip().splitlines()
        assert shown[-1].startswith("error: ") and says in shown[-1] and not (tmp_path / "out").exists()


# ---- reading large JPEGs at a fraction of their size ----


@pytest.mark.parametrize(("side", "size"), [(640, 64), (1600, 128), (500, 128), (3000, 64)])
@pytest.mark.parametrize("fit", ["center", "squash", "pad"])
def test_a_large_jpeg_decoded_small_is_the_same_picture(side: int, size: int, fit: images.Fit) -> None:
    rng = np.random.default_rng(side)
    coarse = Image.fromarray(rng.integers(0, 256, (side // 25, side // 20, 3), dtype=np.uint8))
    whole = coarse.resize((side * 5 // 4, side), Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    whole.save(sink, "JPEG", quality=92)
    full, quick = images.decode(sink.getvalue()), images.decode(sink.getvalue(), size)
    assert min(quick.size) >= min(2 * size, side)
    assert (quick.size < full.size) == (side >= 4 * size)
    a, b = (images.fit(picture, size, fit).astype(float) for picture in (full, quick))
    error = np.sqrt(((a - b) ** 2).mean())
    assert error < 255 * 10 ** (-38 / 20), "38 dB, as re-encoding at quality 95 costs"


def test_digest_of_what_is_read_is_that_of_the_file(tmp_path: Path) -> None:
    """An index must never return another image's bytes: rows, offsets and contents agree."""
    data = open_dataset(str(layouts.shards(tmp_path / "data")), "train", SMALL)
    for i in range(0, len(data), 5):
        number = int(data.ids[i][-4:]) + 20 * int(data.ids[i][:5])
        assert data.source(i) == layouts.picture(number)  # type: ignore[attr-defined]
        part, row = data.locate(i)  # type: ignore[attr-defined]
        kept = part.index["sha256"][row].as_py()
        assert kept == hashlib.sha256(layouts.picture(number)).digest()
