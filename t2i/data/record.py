"""Records of training data, against which `t2i.scoring.leaks` checks held-out data.

A record holds hashes of the captions and of the pixels of each training image, and its perceptual signature (`t2i.data.phash`):
72 bytes per image, from which neither image nor caption can be restored. Rendered shapes are identified by their ids, which
determine their pixels, so they need not be rendered for the record.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from t2i.cache import cache_dir
from t2i.data import Dataset, parse_address
from t2i.data.phash import Signatures, signatures
from t2i.errors import InputError, os_errors, reason_of
from t2i.files import new_file, open_regular
from t2i.images import TRANSFORM, BrokenImage, ImageArray

SCHEMA = 1
CHUNK = 256  # images decoded at once
_ENDS = re.compile(r"^[\W_]+|[\W_]+$")


@dataclass(frozen=True)
class Record:
    """The record of a model's training data.

    Attributes:
        captions, pixels: hashes, uint64, sorted and unique.
        looks: perceptual signatures of the images.
        shared: the share of captions that belong to two or more training images, which estimates how probable it is that the
            caption of a new image from the same source also belongs to a training image.
        data: address, split, number of images and fingerprint of each data set.
    """

    captions: NDArray[np.uint64]
    pixels: NDArray[np.uint64]
    looks: Signatures
    shared: float
    data: tuple[Mapping[str, object], ...]

    def __or__(self, other: "Record") -> "Record":
        """Returns the union of two records, with `shared` of the left one."""
        known = [entry["fingerprint"] for entry in self.data]
        return Record(
            np.union1d(self.captions, other.captions),
            np.union1d(self.pixels, other.pixels),
            _unique(join([self.looks, other.looks])),
            self.shared,
            (*self.data, *(entry for entry in other.data if entry["fingerprint"] not in known)),
        )


# ---- hashes that are equal for equal captions and images -----------------------------------------------------------


def normal_caption(caption: str) -> str:
    """Returns a caption without differences that do not change its meaning: case, white space, width and ligatures (NFKC),
    punctuation and quotes at its ends."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())
    text = " ".join(text.split())
    return _ENDS.sub("", text) or text


def caption_hashes(captions: Iterable[str]) -> NDArray[np.uint64]:
    """Returns the hashes [N] of normalised captions."""
    return _hashes(normal_caption(caption).encode("utf-8", "surrogatepass") for caption in captions)


def pixel_hashes(images_BHWC: Sequence[ImageArray] | ImageArray) -> NDArray[np.uint64]:
    """Returns the hashes [B] of decoded images, which are the same for a lossless copy in another format."""
    return _hashes(repr(image.shape).encode() + image.tobytes() for image in images_BHWC)


def _hashes(data: Iterable[bytes]) -> NDArray[np.uint64]:
    return np.fromiter((int.from_bytes(hashlib.sha256(part).digest()[:8], "big") for part in data), np.uint64)


def join(parts: Sequence[Signatures]) -> Signatures:
    """Concatenates signatures."""
    return Signatures(
        np.concatenate([part.hashes_N for part in parts]), np.concatenate([part.colors_ND for part in parts])
    )


def _unique(looks: Signatures) -> Signatures:
    rows = np.concatenate([looks.hashes_N[:, None].view(np.uint8), looks.colors_ND], axis=1)
    first = np.unique(rows, axis=0, return_index=True)[1]
    return Signatures(looks.hashes_N[first], looks.colors_ND[first])


# ---- the record of a data set -------------------------------------------------------------------------------------


def note(
    dataset: Dataset,
    fingerprint: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    captioned: bool = True,
) -> Record:
    """Returns the record of one data set; hashes of its images are computed once and cached.

    Args:
        fingerprint: identifies the data set in the record.
        captioned: False if its captions are not used in training.
    """
    trained = ([caption for caption in options if caption] if captioned else [] for options in dataset.captions)
    each = [np.unique(caption_hashes(options)) for options in trained]
    captions, counts = np.unique(np.concatenate(each), return_counts=True)
    shared = float(counts[counts > 1].sum() / max(1, counts.sum()))
    if is_rendered(dataset.address):
        pixels, looks = id_hashes(dataset.ids), signatures(np.empty((0, 1, 1, 3), np.uint8))
    else:
        pixels, looks = _hash_images(dataset, progress)
    entry = {"address": dataset.address, "split": dataset.split, "pictures": len(dataset), "fingerprint": fingerprint}
    return Record(captions, np.unique(pixels), _unique(looks), shared, (entry,))


def is_rendered(address: str) -> bool:
    """Returns True for data whose images are rendered shapes."""
    with suppress(InputError):  # the folder no longer exists
        return parse_address(address).kind == "shapes"
    return False


def id_hashes(ids: Iterable[str]) -> NDArray[np.uint64]:
    """Returns the hashes [N] of the ids of rendered scenes, which replace hashes of pixels."""
    return _hashes(name.encode() for name in ids)


def _hash_images(dataset: Dataset, progress: Callable[[int, int], None]) -> tuple[NDArray[np.uint64], Signatures]:
    """Returns hashes of pixels and signatures of all images, from the cache if they are there."""
    path = cache_dir() / "looks" / f"{dataset.fingerprint()}-{TRANSFORM}-{SCHEMA}.safetensors"
    with suppress(OSError, SafetensorError, KeyError):  # a missing or damaged file is written again
        open_regular(path).close()
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in ("pixels", "hashes", "colors")}
            if (file.metadata() or {}).get("sha256") == _digest("", arrays):
                return arrays["pixels"], Signatures(arrays["hashes"], arrays["colors"])
    pixels, looks = [pixel_hashes([])], [signatures(np.empty((0, 1, 1, 3), np.uint8))]
    for start in range(0, len(dataset), CHUNK):
        images_BHWC = _decodable(dataset, range(start, min(start + CHUNK, len(dataset))))
        pixels.append(pixel_hashes(images_BHWC))
        looks.append(signatures(images_BHWC))
        progress(min(start + CHUNK, len(dataset)), len(dataset))
    all_pixels, all_looks = np.concatenate(pixels), join(looks)
    with suppress(OSError):  # without a cache, e.g. on a full disk, the next run computes them again
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            arrays = {"pixels": all_pixels, "hashes": all_looks.hashes_N, "colors": all_looks.colors_ND}
            temporary.write_bytes(save(arrays, {"sha256": _digest("", arrays)}))
    return all_pixels, all_looks


def _decodable(dataset: Dataset, rows: Sequence[int]) -> ImageArray:
    try:
        return dataset.images(rows)
    except BrokenImage:  # training reports it and replaces it
        if len(rows) == 1:
            return np.empty((0, dataset.resolution, dataset.resolution, 3), np.uint8)
        return np.concatenate([_decodable(dataset, [row]) for row in rows])


def write_record(path: Path, record: Record) -> None:
    """Writes `trained_on.safetensors` atomically.

    Raises:
        InputError: the file cannot be written.
    """
    arrays = {"captions": record.captions, "pixels": record.pixels}
    arrays |= {"hashes": record.looks.hashes_N, "colors": record.looks.colors_ND}
    facts = {"schema": SCHEMA, "shared": record.shared, "data": list(record.data)}
    facts["sha256"] = _digest(json.dumps(facts), arrays)
    with os_errors(f"cannot write {path}", "free some space"):
        with new_file(path, durable=True) as temporary:
            # a single entry, since safetensors writes several in random order, and equal records are equal files
            temporary.write_bytes(save(arrays, {"trained_on": json.dumps(facts)}))


def _digest(facts: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Returns the SHA-256 of a record's facts and of the names, shapes and bytes of its arrays."""
    total = hashlib.sha256(facts.encode())
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def read_record(path: Path) -> Record | None:
    """Reads a record; returns None if the file does not exist.

    Raises:
        InputError: the file is damaged or was written by a later version.
    """
    if not path.exists():
        return None
    try:
        open_regular(path).close()
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        facts = json.loads(metadata["trained_on"])
        captions, pixels, hashes, colors = (arrays[name] for name in ("captions", "pixels", "hashes", "colors"))
        # older records have their checksum beside the facts, or none
        checksum = facts.pop("sha256", None) or metadata.get("sha256")
        if checksum is not None and checksum != _digest(json.dumps(facts), arrays):
            raise ValueError("its checksum is wrong")
        if facts["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {facts['schema']}, this t2i reads {SCHEMA}; upgrade t2i")
        return Record(captions, pixels, Signatures(hashes, colors), float(facts["shared"]), tuple(facts["data"]))
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged ({reason_of(error)}); delete it and resume the run, which writes it again"
        ) from error
