"""The cache of codes: hits, misses, damage, kills, broken images."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.data import View, open_dataset
from t2i.distributed import Ranks
from t2i.errors import InputError
from t2i.images import BrokenImage
from t2i.training import codes
from t2i.training.codes import encode_codes


class Mean:
    """A tokenizer whose codes are the brightness of each quarter of an image; it counts the images that it encodes."""

    resolution, grid, codebooks, codebook_size = 16, 2, 1, 64

    def __init__(self, name: str = "a") -> None:
        self.name, self.encoded = name, 0

    def encode(self, images_BHWC):
        self.encoded += len(images_BHWC)
        quarters = images_BHWC.reshape(len(images_BHWC), 2, 8, 2, 8, 3).mean(axis=(2, 4, 5))
        return torch.from_numpy(quarters // 4).long().reshape(-1, 4, 1)

    def digest(self) -> str:
        return self.name


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(codes, "SHARD_IMAGES", 8)
    monkeypatch.setattr(codes, "ENCODE_IMAGES", 3)


def data(limit: int = 20, split: str = "train"):
    return open_dataset("shapes-1", split, View(16, limit=limit))


def test_codes_are_those_of_the_tokenizer_in_both_views(small_shards, tmp_path: Path) -> None:
    tokenizer, dataset = Mean(), data()
    found = encode_codes(tokenizer, dataset, mirrored=True)  # type: ignore[arg-type]
    images = dataset.images(range(20))
    rows = np.array([19, 0, 7, 8, 7])
    for view, pictures in enumerate((images, images[:, :, ::-1])):
        assert torch.equal(found.at(rows, np.full(5, view)), tokenizer.encode(pictures)[rows])
    assert found.hits == 0 and found.misses == 20 and (found.shown(rows) == rows).all()


def test_each_shard_is_opened_once(small_shards, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counting(path: Path, *more: Any) -> Any:
        opened.append(path.name)
        return read_shard(path, *more)

    read_shard = codes.read_shard
    monkeypatch.setattr(codes, "read_shard", counting)
    encode_codes(Mean(), data())  # type: ignore[arg-type]
    encode_codes(Mean(), data())  # type: ignore[arg-type]
    assert len(opened) == 2 * len(set(opened)) > 2


def test_cached_codes_are_reused_and_others_are_encoded(small_shards, tmp_path: Path) -> None:
    def misses(tokenizer=None, dataset=None, **more) -> int:
        return encode_codes(tokenizer or Mean(), dataset or data(), **more).misses  # type: ignore[arg-type]

    assert misses() == 20 and misses() == 0
    assert misses(Mean("b")) == 20
    assert misses(mirrored=True) == 20
    assert misses(dataset=data(21)) == 21 and misses(dataset=data(split="val")) == 20
    assert misses() == 0


def test_a_killed_run_continues_with_the_next_shard_and_a_damaged_shard_is_written_again(
    small_shards, tmp_path: Path
) -> None:
    rows, plain = np.arange(20), np.zeros(20, dtype=np.int64)
    first = encode_codes(Mean(), data()).at(rows, plain).clone()  # type: ignore[arg-type]
    paths = sorted(tmp_path.rglob("*.safetensors"))
    assert len(paths) == 3
    paths[1].unlink()
    again = encode_codes(Mean(), data())  # type: ignore[arg-type]
    assert (again.hits, again.misses) == (12, 8)
    bytes_ = bytearray(paths[2].read_bytes())
    bytes_[-1] ^= 1
    paths[2].write_bytes(bytes_)
    with pytest.warns(UserWarning, match="damaged"):
        mended = encode_codes(Mean(), data())  # type: ignore[arg-type]
    assert mended.misses == 4
    assert torch.equal(first, mended.at(rows, plain))


class FirstOfTwo(Ranks):
    """The first of two processes, the second of which does nothing."""

    def __init__(self) -> None:
        super().__init__(1, True)

    def share(self, count: int) -> range:
        return range((count + 1) // 2)


def test_processes_share_the_work(small_shards, tmp_path: Path) -> None:
    tokenizers = [Mean(), Mean()]
    with pytest.raises(InputError, match="cannot be read back"):  # alone, the first process misses the other's shard
        encode_codes(tokenizers[0], data(), ranks=FirstOfTwo())  # type: ignore[arg-type]
    found = encode_codes(tokenizers[1], data())  # type: ignore[arg-type]
    assert tokenizers[0].encoded == 16 and tokenizers[1].encoded == 4 == found.misses


class Damaged:
    """A data set with an image that cannot be decoded."""

    def __init__(self, bad: set[int], count: int = 200) -> None:
        self._inner, self._bad = data(count), bad
        self.ids, self.captions, self.address, self.split = self._inner.ids, self._inner.captions, "d", "train"

    def __len__(self) -> int:
        return len(self._inner)

    def images(self, rows):
        if self._bad & set(rows):
            raise BrokenImage("truncated")
        return self._inner.images(rows)

    def fingerprint(self) -> str:
        return "damaged"


def test_a_broken_image_is_reported_and_replaced_by_the_next_one(small_shards, tmp_path: Path) -> None:
    found = encode_codes(Mean(), Damaged({5}))  # type: ignore[arg-type]
    assert [entry["row"] for entry in found.broken] == [5]
    rows = np.array([4, 5, 6])
    assert found.shown(rows).tolist() == [4, 6, 6]
    assert torch.equal(found.at(rows, np.zeros(3, dtype=int))[1], found.at(rows, np.zeros(3, dtype=int))[2])


def test_too_many_broken_images_end_the_run(small_shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="over 1 %"):
        encode_codes(Mean(), Damaged({1, 2, 3}))  # type: ignore[arg-type]


def test_two_hundred_mutations_miss_and_two_hundred_repeats_hit(tmp_path: Path) -> None:
    rng = random.Random(0)
    (tmp_path / "data/train").mkdir(parents=True)

    def write(k: int, color: tuple[int, int, int], caption: str) -> None:
        Image.new("RGB", (20, 16), color).save(tmp_path / f"data/train/{k}.png")
        (tmp_path / f"data/train/{k}.txt").write_text(caption)

    for k in range(3):
        write(k, (k, k, k), f"caption {k}")
    state: dict[str, Any] = {"tokenizer": "a", "fit": "center", "seed": 0, "mirrored": False, "resolution": 16}

    def misses() -> int:
        view = View(state["resolution"], state["fit"], seed=state["seed"])
        dataset = open_dataset(f"folder:{tmp_path / 'data'}", "train", view)
        tokenizer = Mean(state["tokenizer"])
        found = encode_codes(tokenizer, dataset, state["mirrored"])  # type: ignore[arg-type]
        images = dataset.images(range(3))
        assert torch.equal(found.at(np.arange(3), np.zeros(3, dtype=int)), tokenizer.encode(images))
        return found.misses

    assert misses() == 3
    for trial in range(200):
        kind = ["tokenizer", "picture", "caption", "fit", "seed", "mirrored"][trial % 6]
        if kind == "tokenizer":
            state["tokenizer"] = f"weights {trial}"
        elif kind in ("picture", "caption"):
            color = tuple(rng.randrange(256) for _ in range(3))
            write(rng.randrange(3), color, f"{kind} {trial}")  # type: ignore[arg-type]
        elif kind == "fit":
            state["fit"] = "random"
            state["tokenizer"] = f"fit {trial}"
            assert misses() == 3
            state["fit"] = rng.choice(["squash", "pad", "center"])
        elif kind == "seed":
            state["fit"], state["seed"] = "random", trial
        else:
            state["mirrored"], state["tokenizer"] = not state["mirrored"], f"views {trial // 12}"
        assert misses() == 3, (trial, kind)
        assert misses() == 0, (trial, kind)
