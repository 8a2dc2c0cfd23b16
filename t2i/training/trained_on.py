"""The record of a run's training data, written once in its directory: `t2i.scoring.leaks` checks held-out data against it.

For each training image `trained_on.safetensors` keeps a hash of its captions, one of its pixels, and how it looks
(`t2i.data.phash`): 72 bytes and no more than that can be read back. Drawn shapes are named by their ids, which decide
their pixels, so they are not drawn for this.
"""

import hashlib
import json
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from t2i.cache import cache_dir
from t2i.data import NO_CAPTION, DataConfig, Dataset, open_dataset, parse_address
from t2i.data.mixture import members_of
from t2i.data.phash import Signatures, signatures
from t2i.errors import InputError
from t2i.families import Source
from t2i.files import new_file, open_regular
from t2i.images import TRANSFORM, BrokenImage, ImageArray
from t2i.trained import RECORD
from t2i.training.progress import now_and_then
from t2i.weights import find

if TYPE_CHECKING:
    from t2i.training.run import Run

SCHEMA = 1
CHUNK = 256  # images decoded at once
_ENDS = re.compile(r"^[\W_]+|[\W_]+$")


@dataclass(frozen=True)
class Record:
    """The record of a model's training data.

    Attributes:
        captions, pixels: uint64, sorted, each once.
        shared: the share of captions that belong to two training images or more; for a caption of a new image of the same
            kind, the probability that a training image bears it too.
        data: of each data set its address, split, number of images and fingerprint.
    """

    captions: NDArray[np.uint64]
    pixels: NDArray[np.uint64]
    looks: Signatures
    shared: float
    data: tuple[Mapping[str, object], ...]

    def __or__(self, other: "Record") -> "Record":
        """Both; `shared` is of the left one."""
        known = [entry["fingerprint"] for entry in self.data]
        return Record(
            np.union1d(self.captions, other.captions),
            np.union1d(self.pixels, other.pixels),
            _unique(join([self.looks, other.looks])),
            self.shared,
            (*self.data, *(entry for entry in other.data if entry["fingerprint"] not in known)),
        )


# ---- what makes two things the same --------------------------------------------------------------------------------


def normal_caption(caption: str) -> str:
    """A caption without what does not change its meaning: case, white space, width and ligatures (NFKC), punctuation and
    quotes at its ends."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())
    text = " ".join(text.split())
    return _ENDS.sub("", text) or text


def caption_hashes(captions: Iterable[str]) -> NDArray[np.uint64]:
    """[N] of normalised captions."""
    return _array(_hash64(normal_caption(caption).encode("utf-8", "surrogatepass")) for caption in captions)


def pixel_hashes(images_BHWC: Sequence[ImageArray] | ImageArray) -> NDArray[np.uint64]:
    """[B] of decoded images: the same for a lossless copy in another format."""
    return _array(_hash64(repr(image.shape).encode() + image.tobytes()) for image in images_BHWC)


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _array(numbers: Iterable[int]) -> NDArray[np.uint64]:
    return np.fromiter(numbers, np.uint64)


def join(parts: Sequence[Signatures]) -> Signatures:
    """The images of all, one after another."""
    return Signatures(
        np.concatenate([part.hashes_N for part in parts]), np.concatenate([part.colors_ND for part in parts])
    )


def _unique(some: Signatures) -> Signatures:
    rows = np.concatenate([some.hashes_N[:, None].view(np.uint8), some.colors_ND], axis=1)
    first = np.unique(rows, axis=0, return_index=True)[1]
    return Signatures(some.hashes_N[first], some.colors_ND[first])


# ---- the record of a run -------------------------------------------------------------------------------------------


def remember(
    run: "Run",
    train: Dataset,
    data: DataConfig,
    built_on: Iterable[str | None] = (),
    start: Source | None = None,
) -> None:
    """Notes in the run's directory what it is trained on, unless that is known. Call it first, and on every rank.

    A resumed run is refused here when its data has changed.

    Args:
        data: what `train` was opened with.
        built_on: runs whose models take part in this one (tokenizer, text encoder, guide); what these were trained on
            counts too, where they tell. Other paths, and None, are passed over.
        start: what its weights come from, whose data counts likewise.
    """
    folders = [find(place) for place in built_on if place is not None]
    # a tokenizer or an encoder inside of a saved model has its record beside it
    paths = [path for folder in folders for path in (folder / RECORD, folder.parent / RECORD)]
    if start is not None:
        paths.append(start.place / RECORD)
        if run.is_main and not paths[-1].exists():
            warnings.warn(
                f"init_from {start.address} has no record of its training data ({RECORD} is missing), so scores of this run may "
                "be of images that it has seen",
                stacklevel=2,
            )
    progress = now_and_then(run.say, "reading the training images, for later tests of what is held out")
    run.identity.keep_data(train)
    run.on_main(lambda: _remember(run.directory / RECORD, train, data, paths, progress))


def _remember(
    path: Path,
    train: Dataset,
    data: DataConfig,
    built_on: Iterable[Path],
    progress: Callable[[int, int], None],
) -> None:
    before = read_record(path)
    known = set() if before is None else {entry["fingerprint"] for entry in before.data}
    members = members_of(train)
    if all(member.fingerprint() in known for member, _ in members):
        return
    notes = []
    for number, (member, captioned) in enumerate(members):
        fingerprint, limit = member.fingerprint(), None if number else data.limit
        if data.fit == "random":  # each copy would be cropped elsewhere
            bare = any(NO_CAPTION in options for options in member.captions)
            view = replace(data.view(limit, bare), fit="center")
            member = open_dataset(member.address, member.split, view)
        notes.append(note(member, fingerprint, progress, captioned))
    record = reduce(or_, notes)
    for other_path in built_on:
        if (other := read_record(other_path)) is not None:
            record |= other
    write_record(path, record if before is None else record | before)


def note(
    dataset: Dataset,
    fingerprint: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    captioned: bool = True,
) -> Record:
    """The record of one data set; its images are looked at once and kept in the cache directory.

    Args:
        fingerprint: under which the data set is known.
        captioned: False: its captions take no part in the training.
    """
    trained = ([caption for caption in options if caption] if captioned else [] for options in dataset.captions)
    each = [np.unique(caption_hashes(options)) for options in trained]
    captions, counts = np.unique(np.concatenate(each), return_counts=True)
    shared = float(counts[counts > 1].sum() / max(1, counts.sum()))
    if is_drawn(dataset.address):
        pixels, seen = id_hashes(dataset.ids), signatures(np.empty((0, 1, 1, 3), np.uint8))
    else:
        pixels, seen = _see_cached(dataset, progress)
    entry = {"address": dataset.address, "split": dataset.split, "pictures": len(dataset), "fingerprint": fingerprint}
    return Record(captions, np.unique(pixels), _unique(seen), shared, (entry,))


def is_drawn(address: str) -> bool:
    """Returns True for ids of rendered scenes."""
    with suppress(InputError):  # a folder that has gone
        return parse_address(address).kind == "shapes"
    return False


def id_hashes(ids: Iterable[str]) -> NDArray[np.uint64]:
    """[N]; of drawn scenes, in the place of pixels."""
    return _array(_hash64(name.encode()) for name in ids)


def _see_cached(dataset: Dataset, progress: Callable[[int, int], None]) -> tuple[NDArray[np.uint64], Signatures]:
    path = cache_dir() / "looks" / f"{dataset.fingerprint()}-{TRANSFORM}-{SCHEMA}.safetensors"
    with suppress(OSError, SafetensorError, KeyError):  # not there or damaged: look again
        open_regular(path).close()
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in ("pixels", "hashes", "colors")}
            if (file.metadata() or {}).get("sha256") == _digest("", arrays):
                return arrays["pixels"], Signatures(arrays["hashes"], arrays["colors"])
    pixels, seen = [pixel_hashes([])], [signatures(np.empty((0, 1, 1, 3), np.uint8))]
    for start in range(0, len(dataset), CHUNK):
        images_BHWC = _decodable(dataset, range(start, min(start + CHUNK, len(dataset))))
        pixels.append(pixel_hashes(images_BHWC))
        seen.append(signatures(images_BHWC))
        progress(min(start + CHUNK, len(dataset)), len(dataset))
    all_pixels, all_looks = np.concatenate(pixels), join(seen)
    with suppress(OSError):  # a full disk costs the next run a minute
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            arrays = {"pixels": all_pixels, "hashes": all_looks.hashes_N, "colors": all_looks.colors_ND}
            temporary.write_bytes(save(arrays, {"sha256": _digest("", arrays)}))
    return all_pixels, all_looks


def _decodable(dataset: Dataset, rows: Sequence[int]) -> ImageArray:
    try:
        return dataset.images(rows)
    except BrokenImage:  # since the data was opened; training puts it into quarantine
        if len(rows) == 1:
            return np.empty((0, dataset.resolution, dataset.resolution, 3), np.uint8)
        return np.concatenate([_decodable(dataset, [row]) for row in rows])


def write_record(path: Path, record: Record) -> None:
    """Writes `trained_on.safetensors`, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    arrays = {"captions": record.captions, "pixels": record.pixels}
    arrays |= {"hashes": record.looks.hashes_N, "colors": record.looks.colors_ND}
    facts = json.dumps({"schema": SCHEMA, "shared": record.shared, "data": list(record.data)})
    try:
        with new_file(path, durable=True) as temporary:
            temporary.write_bytes(save(arrays, {"trained_on": facts, "sha256": _digest(facts, arrays)}))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; free some space") from error


def _digest(facts: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """sha256 over what a record says, and over the names, shapes and bytes of its arrays."""
    total = hashlib.sha256(facts.encode())
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def read_record(path: Path) -> Record | None:
    """None where there is no such file.

    Raises:
        InputError: it is damaged, or of a later version.
    """
    if not path.exists():
        return None
    try:
        open_regular(path).close()
        with safe_open(path, "numpy") as file:
            kept = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        facts = json.loads(kept["trained_on"])
        captions, pixels, hashes, colors = (arrays[name] for name in ("captions", "pixels", "hashes", "colors"))
        # records of version 0.1.0 have no checksum
        if "sha256" in kept and kept["sha256"] != _digest(kept["trained_on"], arrays):
            raise ValueError("its checksum is wrong")
        if facts["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {facts['schema']}, this t2i reads {SCHEMA}; upgrade t2i")
        return Record(captions, pixels, Signatures(hashes, colors), float(facts["shared"]), tuple(facts["data"]))
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(f"{path} is damaged ({reason}); delete it and resume the run, which writes it anew") from error
