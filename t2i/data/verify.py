"""Finds broken images by decoding each image once; results are stored in the cache directory (verified_index.py).

A second pass over an unchanged folder needs one `stat` per file. The folder itself is not changed.
"""

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from t2i import images
from t2i.data.cached import Stamp, stamp_of
from t2i.data.phash import pack, signatures
from t2i.data.verified_index import MIN_SIDE, Index, Verified
from t2i.names import counted

_RACE_NS = 2_000_000_000  # a newer file may change again without a new time stamp (FAT stores even seconds)
_SAVE_EVERY_S = 20.0  # maximum time of work that is lost if the process is killed
_HASHED_SIDE = 64
_AT_ONCE = 256  # images between two checks of the time
Progress = Callable[[int, int], None]
_progress: ContextVar[Progress | None] = ContextVar("progress of verification", default=None)


@contextmanager
def watched(progress: Progress) -> Iterator[None]:
    """Calls `progress(images done, images to do)` during all verification in the block."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


def workers() -> int:
    """Returns the number of threads for decoding, during which Pillow releases the interpreter lock."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def verify(root: Path, files: Mapping[str, str], ids: Sequence[str], most: int | None = None) -> dict[str, Verified]:
    """Decodes the images `ids` that are not in the index yet.

    Args:
        root: the folder.
        files: all images of the folder, id -> path under `root`; entries of other ids are removed from the index.
        ids: the images to verify, keys of `files`.
        most: maximum number of unknown images, above which none is decoded; None: no limit.

    Returns:
        One `Verified` for each id; `sha256` and `reason` are empty for images that were not decoded.
    """
    index = Index(root.resolve())
    known = index.load()
    stamps = {name: stamp_of(root / files[name]) for name in ids}
    todo = [name for name in ids if name not in known or known[name].stamp != stamps[name]]
    if most is not None and len(todo) > most:
        unknown = set(todo)
        return {name: _stamped(stamps[name]) if name in unknown else known[name] for name in ids}

    def one(name: str) -> Verified:
        path = root / files[name]
        return _verify_one(lambda: images.read_limited(path), _stamped(stamp_of(path)), known.get(name))

    if todo:
        _examine(index, known, todo, one, files)
    return {name: known[name] for name in ids}


def verify_packed(address: str, ids: Sequence[str], read: Callable[[int], bytes]) -> dict[str, Verified]:
    """Like `verify`, for images that are not separate files.

    Args:
        address: address of the data.
        read: returns the bytes of row i; raises BrokenImage or OSError.
    """
    index = Index(place_of(address))
    known = index.load()
    row = {name: i for i, name in enumerate(ids)}
    _examine(index, known, ids, lambda name: _verify_one(lambda: read(row[name]), Verified(-1, 0), known.get(name)))
    return {name: known[name] for name in ids}


def verify_rendered(ids: Sequence[str], render: Callable[[Sequence[int]], images.ImageArray]) -> dict[str, Verified]:
    """Like `verify`, for rendered images, which are never broken; nothing is stored."""
    verified: dict[str, Verified] = {}
    progress = _progress.get() or (lambda done, total: None)
    for start in range(0, len(ids), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(ids)))
        pixels_BHWC = render(rows)
        for i, image_HWC, signature in zip(rows, pixels_BHWC, pack(signatures(pixels_BHWC)), strict=True):
            height, width, _ = image_HWC.shape
            digest = hashlib.sha256(image_HWC.tobytes()).hexdigest()
            verified[ids[i]] = Verified(image_HWC.nbytes, 0, width, height, "rendered", "RGB", digest, signature)
        progress(rows.stop, len(ids))
    return verified


def place_of(address: str) -> str:
    """Returns the place, for `Index`, of data whose images are not separate files."""
    kind, _, place = address.partition(":")
    return address if "://" in place else f"{kind}:{os.path.abspath(os.path.expanduser(place))}"


def known_broken(address: str) -> dict[str, str]:
    """Returns SHA-256 -> reason for the images that a check of this address found broken."""
    return {known.sha256: known.reason for known in Index(place_of(address)).load(only_broken=True).values()}


def warn_unverified(address: str, count: int) -> None:
    """Warns that `count` images have not been verified."""
    if count:
        warnings.warn(
            f"{counted(count, 'image')} of {address} {'has' if count == 1 else 'have'} not been verified: after `t2i data "
            "check`, training leaves out broken images; otherwise it replaces them when it reads them",
            stacklevel=4,
        )


def warn_damaged(address: str, captions: Sequence[str]) -> None:
    """Warns about captions with U+FFFD in place of letters."""
    if captions:
        warnings.warn(
            f"{counted(len(captions), 'caption')} of {address} with U+FFFD in place of letters, e.g. {captions[0][:80]!r}: "
            "a program has read them in a wrong encoding; `t2i data check` lists all",
            stacklevel=5,
        )


def _examine(
    index: Index,
    known: dict[str, Verified],
    todo: Sequence[str],
    one: Callable[[str], Verified],
    members: Collection[str] | None = None,
) -> None:
    """Verifies each image by `one`, which reads `known`, and adds the results to `known` and to the index.

    Args:
        members: ids whose entries stay in the index; None: all.
    """
    progress = _progress.get() or (lambda done, total: None)
    new: dict[str, Verified] = {}
    saved = time.monotonic()
    progress(0, len(todo))
    try:
        with ThreadPoolExecutor(workers()) as pool:
            for start in range(0, len(todo), _AT_ONCE):
                names = todo[start : start + _AT_ONCE]
                verified = dict(zip(names, pool.map(one, names), strict=True))
                new |= {name: own for name, own in verified.items() if _is_lasting(own) and known.get(name) != own}
                known.update(verified)
                progress(start + len(names), len(todo))
                if new and time.monotonic() - saved > _SAVE_EVERY_S:
                    index.add(new)
                    saved, new = time.monotonic(), {}
    finally:  # also after an interruption
        if new:
            index.add(new)
    current = {name: own for name, own in known.items() if members is None or name in members}
    if len(index) > 1 or len(current) < len(known):
        index.replace({name: own for name, own in current.items() if _is_lasting(own)})


def _stamped(stamp: Stamp) -> Verified:
    size, mtime_ns, ctime_ns = stamp
    return Verified(size, mtime_ns, ctime_ns=ctime_ns)


def _verify_one(read: Callable[[], bytes], known: Verified, before: Verified | None) -> Verified:
    """Reads and decodes one image.

    Args:
        read: returns the bytes; raises BrokenImage or OSError.
        known: size and times of the file, if it is a separate file.
        before: the result for an earlier version of the image, which is still valid if the bytes are the same.
    """
    try:
        data = read()
    except images.BrokenImage as error:
        return known._replace(reason=str(error), lasting=False)
    except OSError as error:
        return known._replace(reason=f"cannot be read: {error.strerror or error}", lasting=False)
    size = len(data) if known.size < 0 else known.size  # of a separate file over the limit, only the start is read
    known = known._replace(size=size, sha256=hashlib.sha256(data).hexdigest())
    if before is not None and before.sha256 == known.sha256:
        return before._replace(size=known.size, mtime_ns=known.mtime_ns, ctime_ns=known.ctime_ns)
    return _decoded(data, known)


def _decoded(data: bytes, known: Verified) -> Verified:
    """Decodes one image and adds the result to its size, times and SHA-256."""
    try:
        image = images.decode(data)
    except images.BrokenImage as error:
        return known._replace(reason=str(error))
    width, height = image.size
    small = f"{width}x{height} pixels: too small to be an image" if min(width, height) < MIN_SIDE else ""
    with Image.open(BytesIO(data)) as header:
        mode = header.mode
    shrunk = image.resize((_HASHED_SIDE, _HASHED_SIDE), Image.Resampling.BOX)
    (signature,) = pack(signatures(np.asarray(shrunk)[None]))
    return known._replace(
        width=width, height=height, format=image.format or "", mode=mode, signature=signature, reason=small
    )


def _is_lasting(known: Verified) -> bool:
    return known.lasting and abs(time.time_ns() - known.mtime_ns) > _RACE_NS
