"""`t2i data check|filter|split|pack` and `t2i cache`: reports, links, shards, and unchanged sources."""

import hashlib
import json
import os
import signal
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.hostile_data import in_the_past
from t2i import images
from t2i.cache import entries, parse_age, parse_size, prune
from t2i.cli.app import main
from t2i.data import DataConfig, View, open_dataset, verify
from t2i.data.augment import may_flip, warn_of_contradictions
from t2i.data.captions import script_of
from t2i.data.tools.check import check
from t2i.data.tools.opening import open_splits
from t2i.data.tools.pack import pack
from t2i.data.tools.rewrite import Rules, filter_captions, split_images
from t2i.data.verified_index import Index
from t2i.errors import InputError


def photo(key: int, height: int = 40, width: int = 60) -> Image.Image:
    """Returns a smooth image, which re-encoding hardly changes."""
    rng = np.random.default_rng(key)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def put(path: Path, captions: list[str], key: int = 0, **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(key, **options).save(path)
    path.with_suffix(".txt").write_text("\n".join(captions))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]


# ---- check -------------------------------------------------------------------------------------------------------------


def test_the_command_reports_keeps_and_draws(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in range(8):
        put(folder / f"train/{key}.png", [f"a photo number {key}"], key)
    put(folder / "val/copy.png", ["a copy"], 0)
    photo(1).resize((90, 60)).save(put(folder / "train/smaller.jpg", ["another copy"], 1), quality=80)
    put(folder / "train/russian.png", ["кот на диване", "one"], 20)
    photo(30).convert("CMYK").save(put(folder / "train/ink.jpg", ["ink"], 30))
    put(folder / "train/bad.png", ["bad"]).write_bytes(b"junk")
    before = contents(folder)
    assert main(["data", "check", str(folder), "--sheet", str(tmp_path / "sheet.png")]) == 0
    out = capsys.readouterr().out
    for part in (
        "images               13, usable 12",
        "train 11, val 1",
        "LATIN 12, CYRILLIC 1",
        "CMYK 1",
        "train/bad.png: not a PNG",
        "groups of equal image files: 1\n    train/0.png, val/copy.png",
        "groups of different files that look the same: 1\n    train/1.png, train/smaller.jpg",
        "groups of equal image files in several splits: 1",
    ):
        assert part in out, part
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width > 8 * 128 and sheet.height > 2 * 128 and contents(folder) == before
    import pyarrow.parquet as pq

    index = Path(check(folder).index)
    rows = {row["id"]: row for row in pq.read_table(index / "pictures.parquet").to_pylist()}
    assert rows["train/russian.png"]["captions"] == 2 and rows["val/copy.png"]["split"] == "val"
    digest = hashlib.sha256((folder / "train/0.png").read_bytes()).hexdigest()
    assert rows["train/0.png"]["sha256"] == rows["val/copy.png"]["sha256"] == digest
    assert rows["train/ink.jpg"]["mode"] == "CMYK" and "not a PNG" in rows["train/bad.png"]["broken"]
    report = json.loads((index / "report.json").read_text())
    assert report["words"]["a"] == 9 and report["words_per_caption"] == {"1": 2, "2": 2, "3": 1, "4": 8}


@pytest.mark.parametrize(
    ("text", "script"), [("a dog", "LATIN"), ("собака dog собака", "CYRILLIC"), ("犬 😀", "CJK"), ("1!", "none")]
)
def test_script(text: str, script: str) -> None:
    assert script_of(text) == script


def test_a_killed_check_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in range(12):
        put(folder / f"train/{key:02d}.png", ["x"], key)
    in_the_past(folder)
    monkeypatch.setattr(verify, "_SAVE_EVERY_S", 0.0)
    real = images.read_limited
    child = os.fork()
    if child == 0:

        def die_at_the_last(path: Path) -> bytes:
            if path.name == "11.png":
                os.kill(os.getpid(), signal.SIGKILL)
            return real(path)

        monkeypatch.setattr(images, "read_limited", die_at_the_last)
        monkeypatch.setattr(verify, "_AT_ONCE", 4)
        try:
            check(folder)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    decoded: list[str] = []
    monkeypatch.setattr(images, "read_limited", lambda path: decoded.append(path.name) or real(path))
    assert check(folder).images == 12 and 0 < len(decoded) <= 4
    decoded.clear()
    assert check(folder).images == 12 and decoded == []
    assert len(list(Index(folder.resolve()).folder.glob("*.arrow"))) == 1


def test_shards_are_checked_and_training_leaves_out_what_is_broken(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for key in range(6):
            photo(key).save(tmp_path / "x.png")
            content = b"junk" if key == 3 else (tmp_path / "x.png").read_bytes()
            for suffix, data in (("png", content), ("txt", b"caption")):
                (tmp_path / "member").write_bytes(data)
                tar.add(tmp_path / "member", f"{key}.{suffix}")
    address = f"shards:{folder}"
    in_the_past(folder)
    report = check(address)
    assert report.images == 6 and [name[-1] for name, _ in report.broken] == ["3"]
    with pytest.warns(UserWarning, match="skipped 1 image that `t2i data check` found broken"):
        splits = open_splits(address)
    assert sum(map(len, splits.values())) == 5
    again = check(address)
    assert (again.images, again.broken) == (6, report.broken)


def test_drawn_data_can_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    real = open_dataset
    for module in ("check", "opening"):
        monkeypatch.setattr(
            f"t2i.data.tools.{module}.open_dataset",
            lambda address, split, view: real(address, split, View(64, limit=30)),
        )
    report = check("shapes-1")
    assert report.splits == {"train": 30, "val": 30, "heldout": 30} and report.formats == {"rendered": 90}


# ---- filter and split --------------------------------------------------------------------------------------------------


def test_filters_of_captions(folder: Path, tmp_path: Path) -> None:
    put(folder / "train/a.png", ["a small dog", "dog", "a very long caption about a dog"], 0)
    put(folder / "train/b.png", ["A Small Dog", "a cat"], 1)
    put(folder / "train/c.png", ["a catalogue"], 2)
    put(folder / "val/d.png", ["a small dog runs"], 3)
    before = contents(folder)
    rules = Rules(min_words=2, max_words=4, unique=True, allow=("dog", "catalogue"), deny=("runs",))
    images, left_out = filter_captions(f"folder:{folder}", tmp_path / "out", rules)
    assert images == {"train": 2}
    assert left_out == {
        "captions too short": 1,
        "captions too long": 1,
        "captions without an allowed word": 1,
        "captions with a denied word": 1,
        "repeated captions": 1,
    }
    rows = rows_of(tmp_path / "out/train")
    assert [(row["text"], row["id"]) for row in rows] == [
        ("a small dog", "train/a.png"),
        ("a catalogue", "train/c.png"),
    ]
    first = tmp_path / "out/train" / rows[0]["file_name"]
    assert first.samefile(folder / "train/a.png") and contents(folder) == before
    data = open_dataset(str(tmp_path / "out"), "train", View(16))
    assert [own[0] for own in data.captions] == ["a small dog", "a catalogue"]
    with pytest.raises(InputError, match="no caption .* passes the filters .*too short.*loosen"):
        filter_captions(f"folder:{folder}", tmp_path / "none", Rules(min_words=50))
    assert not (tmp_path / "none").exists()


def test_another_disk_gets_links(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder / "train/a.png", ["x"])

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    filter_captions(f"folder:{folder}", tmp_path / "out", Rules())
    (link,) = (tmp_path / "out/train").glob("*.png")
    assert link.is_symlink() and link.samefile(folder / "train/a.png")


def test_equal_files_come_into_one_split_and_new_ones_move_none(folder: Path, tmp_path: Path) -> None:
    for key in range(60):
        put(folder / f"{key:02d}.png", [f"caption {key}"], key % 40)

    def drawn(out: str, seed: int = 0) -> dict[bytes, set[str]]:
        done = split_images(f"folder:{folder}", tmp_path / out, {"train": 0.6, "val": 0.4}, seed)
        assert sum(done.values()) == len(list(folder.glob("*.png")))
        where: dict[bytes, set[str]] = {}
        for split in ("train", "val"):
            for path in (tmp_path / out / split).glob("*.png"):
                where.setdefault(path.read_bytes(), set()).add(split)
        return where

    first = drawn("one")
    assert len(first) == 40 and all(len(splits) == 1 for splits in first.values())
    assert 15 < sum("train" in splits for splits in first.values()) < 33 and drawn("seed", 1) != first
    put(folder / "new.png", ["new"], 99)
    assert first.items() <= drawn("two").items()
    with pytest.raises(InputError, match="must add up to 1, got train 0.5, val 0.1"):
        split_images(f"folder:{folder}", tmp_path / "x", {"train": 0.5, "val": 0.1})
    with pytest.raises(InputError, match="rendered and has no files"):
        split_images("shapes-1", tmp_path / "x", {"train": 1.0})


# ---- pack --------------------------------------------------------------------------------------------------------------


def packed(folder: Path, out: Path, **options: object) -> object:
    return pack(open_splits(f"folder:{folder}"), out, **options)  # type: ignore[arg-type]


def test_shards_hold_what_the_folder_holds(folder: Path, tmp_path: Path) -> None:
    for key in range(7):
        put(folder / f"train/{key}.png", [f"caption {key}", "another"], key, width=100, height=50)
    put(folder / "val/v.jpg", ["small"], 50, width=20, height=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = packed(folder, tmp_path / "shards", size=20, suffix="png", per_shard=3)
    assert (done.shards, done.images, done.broken) == (4, 8, [])  # type: ignore[attr-defined]
    data = open_dataset(f"shards:{tmp_path / 'shards'}", "train", View(16))
    whole = open_dataset(str(folder), "train", View(16))
    assert sorted(map(tuple, data.captions)) == sorted(map(tuple, whole.captions))
    picture = data.image(0, full=True)  # type: ignore[attr-defined]
    assert picture.size == (40, 20)
    own = next(i for i, captions in enumerate(whole.captions) if captions[0] == data.captions[0][0])
    assert np.abs(data.images([0]).astype(int) - whole.images([own])).mean() < 3
    small = open_dataset(f"shards:{tmp_path / 'shards'}", "val", View(16))
    assert small.image(0, full=True).size == (20, 10)  # type: ignore[attr-defined]
    with tarfile.open(tmp_path / "shards/train-00000.tar") as tar:
        names = tar.getnames()
        assert names[:3] == ["000000000.png", "000000000.txt", "000000000.json"] and len(names) == 9
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


def test_the_same_bytes_again_and_after_a_stop(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in range(9):
        put(folder / f"train/{key}.png", [f"caption {key}"], key)
    packed(folder, tmp_path / "one", size=16, per_shard=4)
    shards = [0]

    def stop(done: int, total: int) -> None:
        shards[0] += 1
        if shards[0] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed(folder, tmp_path / "two", size=16, per_shard=4, on_progress=stop)
    assert len(list((tmp_path / "two").glob("*.tar"))) == 2
    (tmp_path / "two/train-00001.parquet").unlink()  # as if killed between tar and table
    (tmp_path / "two/.train-00001.tar.1-1.tmp").write_bytes(b"half")
    done = packed(folder, tmp_path / "two", size=16, per_shard=4)
    assert (done.images, done.before) == (5, 4)  # type: ignore[attr-defined]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with pytest.raises(InputError, match="shards of other data or settings"):
        packed(folder, tmp_path / "two", size=32, per_shard=4)
    with pytest.raises(InputError, match="holds files"):
        packed(folder, folder)


def test_files_stay_as_they_are_where_asked_and_broken_ones_are_named(folder: Path, tmp_path: Path) -> None:
    for key in range(4):
        put(folder / f"train/{key}.jpg", [f"caption {key}"], key)
    splits = open_splits(f"folder:{folder}")
    (folder / "train/2.jpg").write_bytes(b"junk")
    done = pack(splits, tmp_path / "out", size=None)
    assert done.images == 3 and [name for name, _ in done.broken] == ["train/2.jpg"]
    with tarfile.open(tmp_path / "out/train-00000.tar") as tar:
        pictures = {tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")}  # type: ignore[union-attr]
    assert pictures == {(folder / f"train/{key}.jpg").read_bytes() for key in (0, 1, 3)}


# ---- captions and their pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("captions", "flips"),
    [
        (["a dog", "a bright cat"], True),
        (["a dog on the Left"], False),
        (["a dog", "turning right."], False),
        (["a copyright notice, leftovers"], True),
        (["the rightmost of three"], False),
    ],
)
def test_no_flips_where_captions_tell_left_from_right(captions: list[str], flips: bool, folder: Path) -> None:
    for key, caption in enumerate(captions):
        put(folder / f"train/{key}.png", [caption], key)
    data = open_dataset(str(folder), "train", View())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert may_flip(True, data) == flips and not may_flip(False, data)
    assert [str(one.message)[:12] for one in caught] == ([] if flips else ["flip is off:"])


def test_random_crops_and_captions_of_places(folder: Path) -> None:
    put(folder / "train/0.png", ["a dog in the corner"])
    data = open_dataset(str(folder), "train", View())
    with pytest.warns(UserWarning, match="may cut off .*'a dog in the corner'"):
        warn_of_contradictions(DataConfig(fit="random"), data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_contradictions(DataConfig(fit="center"), data)


# ---- cache -------------------------------------------------------------------------------------------------------------


def test_prune_removes_what_was_used_longest_ago(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for age, (kind, size) in enumerate([("text", 300), ("codes", 200), ("index", 100)]):
        path = own_cache / kind / f"key{age}" / "00000.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (path.stat().st_mtime - 86400 * age,) * 2)
    own = own_cache / "mine.txt"
    own.write_text("not of the cache")
    assert [(row.kind, row.bytes) for row in entries()] == [("text", 300), ("codes", 200), ("index", 100)]
    assert main(["cache", "list"]) == 0
    assert "text/key0" in capsys.readouterr().out
    assert prune(max_size="0.5KB") == (1, 100, 500)
    assert not (own_cache / "index/key2").exists()
    assert prune(older_than="12h") == (1, 200, 300)
    assert main(["cache", "prune", "--max-size", "0"]) == 0 and entries() == [] and own.exists()
    assert main(["cache", "prune"]) == 2
    assert "name --max-size" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "size"), [("10GB", 10**10), ("500 mb", 5 * 10**8), ("1.5k", 1500), ("7", 7)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_sizes_and_ages_that_cannot_be_read() -> None:
    assert parse_age("30d") == 30 * 86400
    for parse, text in ((parse_size, "many"), (parse_size, "-1GB"), (parse_age, "30"), (parse_age, "1y")):
        with pytest.raises(InputError, match=f"{text!r}.*write it as"):
            parse(text)
