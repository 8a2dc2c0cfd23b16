"""Finds broken images by decoding each image once; results are stored in the cache directory (verified_index.py).

A second pass over an unchanged folder needs one `stat` per file. Nothing is written to the folder itself.
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
from t2i.data.phash import signatures
from t2i.data.verified_index import MIN_SIDE, Index, Verified
from t2i.names import counted

_RACE_NS = 2_000_000_000  # a younger file may change again without a new time stamp (FAT stores even seconds)
_KEEP_EVERY_S = 20.0  # maximum time of work that is lost if the process is killed
_HASHED_SIDE = 64
_AT_ONCE = 256  # images between two checks of the time
Progress = Callable[[int, int], None]
_progress: ContextVar[Progress | None] = ContextVar("progress of verification", default=None)


@contextmanager
def watched(progress: Progress) -> Iterator[None]:
    """Has verification call `progress(images done, images to do)` within the block."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


def workers() -> int:
    """Returns the number of threads for decoding, during which Pillow releases the interpreter lock."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def verify(root: Path, files: Mapping[str, str], wanted: Sequence[str], most: int | None = None) -> dict[str, Verified]:
    """Decodes those of the images `wanted` that are not in the index yet.

    Args:
        root: the folder.
        files: all images of the folder, id -> path under `root`; entries of other ids are removed from the index.
        wanted: ids to verify, keys of `files`.
        most: decode nothing if more than so many images are unknown; None: no limit.

    Returns:
        one `Verified` for each id of `wanted`; `sha256` and `reason` are empty for images that were not decoded.
    """
    index = Index(root.resolve())
    known = index.load()
    stamps = {name: stamp_of(root / files[name]) for name in wanted}
    todo = [name for name in wanted if name not in known or known[name].stamp != stamps[name]]
    if most is not None and len(todo) > most:
        unknown = set(todo)
        return {name: _stamped(stamps[name]) if name in unknown else known[name] for name in wanted}
    if todo:
        before = dict(known)
        _examine(index, known, todo, lambda name: _verify_file(root / files[name], before.get(name)), files)
    return {name: known[name] for name in wanted}


def verify_packed(address: str, ids: Sequence[str], read: Callable[[int], bytes | Path]) -> dict[str, Verified]:
    """Does the same as `verify` for images that are not separate files.

    Args:
        address: address of the data.
        read: returns the bytes or the file of image number i; raises BrokenImage or OSError.
    """
    index = Index(place_of(address))
    known = index.load()
    number = {name: i for i, name in enumerate(ids)}
    before = dict(known)
    _examine(index, known, ids, lambda name: _verify_packed(read, number[name], before.get(name)), None)
    return {name: known[name] for name in ids}


def verify_rendered(ids: Sequence[str], render: Callable[[Sequence[int]], images.ImageArray]) -> dict[str, Verified]:
    """Does the same as `verify` for rendered images, which are never broken; nothing is stored."""
    found: dict[str, Verified] = {}
    progress = _progress.get() or (lambda done, total: None)
    for start in range(0, len(ids), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(ids)))
        pixels_BHWC = render(rows)
        for i, image_HWC, signature in zip(rows, pixels_BHWC, _signatures(pixels_BHWC), strict=True):
            height, width, _ = image_HWC.shape
            digest = hashlib.sha256(image_HWC.tobytes()).hexdigest()
            found[ids[i]] = Verified(image_HWC.nbytes, 0, width, height, "rendered", "RGB", digest, signature)
        progress(rows.stop, len(ids))
    return found


def place_of(address: str) -> str:
    """Returns the name of the index of images that are not separate files."""
    kind, _, place = address.partition(":")
    return address if "://" in place else f"{kind}:{os.path.abspath(os.path.expanduser(place))}"


def known_broken(address: str) -> dict[str, str]:
    """Returns SHA-256 -> reason for the images that a check of this address found broken."""
    import pyarrow.compute as pc

    bad: dict[str, str] = {}
    for table in Index(place_of(address)).tables():
        rows = table.filter(pc.not_equal(table["reason"], ""))  # pyright: ignore[reportAttributeAccessIssue]
        bad |= dict(zip(rows["sha256"].to_pylist(), rows["reason"].to_pylist(), strict=True))
    return bad


def warn_unverified(address: str, count: int) -> None:
    """Warns that `count` images have not been verified."""
    if count:
        warnings.warn(
            f"{counted(count, 'image')} of {address} have not been looked at: `t2i data check` does, and training then "
            "leaves out what is broken; without it, a broken image is replaced when training meets it",
            stacklevel=4,
        )


def warn_damaged(address: str, captions: Sequence[str]) -> None:
    """Warns about captions with U+FFFD in place of letters."""
    if captions:
        warnings.warn(
            f"{counted(len(captions), 'caption')} of {address} with U+FFFD in the place of letters, as {captions[0][:80]!r}: "
            "a file was read in a wrong encoding before; `t2i data check` lists all",
            stacklevel=5,
        )


def _examine(
    index: Index,
    known: dict[str, Verified],
    todo: Sequence[str],
    one: Callable[[str], Verified],
    members: Collection[str] | None,
) -> None:
    """Verifies each image by `one` and adds the results to `known` and to the index."""
    progress = _progress.get() or (lambda done, total: None)
    new: dict[str, Verified] = {}
    kept = time.monotonic()
    progress(0, len(todo))
    try:
        with ThreadPoolExecutor(workers()) as pool:
            for start in range(0, len(todo), _AT_ONCE):
                names = todo[start : start + _AT_ONCE]
                found = dict(zip(names, pool.map(one, names), strict=True))
                new |= {name: its for name, its in found.items() if _may_keep(its) and known.get(name) != its}
                known.update(found)
                progress(start + len(names), len(todo))
                if time.monotonic() - kept > _KEEP_EVERY_S:
                    index.add(new)
                    kept, new = time.monotonic(), {}
    finally:  # also after an interruption
        index.add(new)
    gone = members is not None and any(name not in members for name in known)
    if len(index) > 1 or gone:
        index.replace(
            {name: its for name, its in known.items() if _may_keep(its) and (members is None or name in members)}
        )


def _stamped(stamp: Stamp) -> Verified:
    size, mtime_ns, ctime_ns = stamp
    return Verified(size, mtime_ns, ctime_ns=ctime_ns)


def _verify_file(path: Path, before: Verified | None = None) -> Verified:
    found = _stamped(stamp_of(path))
    try:
        data = images.read_limited(path)
    except OSError as error:
        return found._replace(reason=f"cannot be read: {error.strerror or error}", lasting=False)
    content = hashlib.sha256(data).hexdigest()
    if before is not None and before.sha256 == content:  # only touched, or linked once more
        return before._replace(size=found.size, mtime_ns=found.mtime_ns, ctime_ns=found.ctime_ns)
    return _decoded(data, found._replace(sha256=content))


def _verify_packed(read: Callable[[int], bytes | Path], i: int, before: Verified | None) -> Verified:
    try:
        source = read(i)
        data = source if isinstance(source, bytes) else images.read_limited(source)
    except images.BrokenImage as error:
        return Verified(-1, 0, reason=str(error), lasting=False)
    except OSError as error:
        return Verified(-1, 0, reason=f"cannot be read: {error.strerror or error}", lasting=False)
    found = Verified(len(data), 0, sha256=hashlib.sha256(data).hexdigest())
    return before if before is not None and before.sha256 == found.sha256 else _decoded(data, found)


def _decoded(data: bytes, found: Verified) -> Verified:
    """Decodes one image and adds the result to its size, time and SHA-256."""
    try:
        image = images.decode(data)
    except images.BrokenImage as error:
        return found._replace(reason=str(error))
    width, height = image.size
    small = f"{width}x{height} pixels: too small to be an image" if min(width, height) < MIN_SIDE else ""
    with Image.open(BytesIO(data)) as header:
        mode = header.mode
    shrunk = image.resize((_HASHED_SIDE, _HASHED_SIDE), Image.Resampling.BOX)
    signature = _signatures(np.asarray(shrunk)[None])[0]
    return found._replace(
        width=width, height=height, format=image.format or "", mode=mode, signature=signature, reason=small
    )


def _signatures(images_BHWC: images.ImageArray) -> list[bytes]:
    found = signatures(images_BHWC)
    return [number.tobytes() + colors.tobytes() for number, colors in zip(found.hashes_N, found.colors_ND, strict=True)]


def _may_keep(found: Verified) -> bool:
    return found.lasting and abs(time.time_ns() - found.mtime_ns) > _RACE_NS
