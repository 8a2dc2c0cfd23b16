"""Pictures as files hold them: a folder, a tar as WebDataset writes it, an .npz as ADM's evaluator reads it.

Nothing is unpacked onto the disk, nothing unpickled. Every picture is decoded once before any is scored, so that a broken
one is named in time. docs/scoring.md describes the layouts.
"""

import hashlib
import json
import math
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from t2i import images
from t2i.data.folders.index import index_folder
from t2i.data.packed.tar import list_tar
from t2i.data.verify import MIN_SIDE, Verified, verify, workers
from t2i.errors import InputError
from t2i.images import ImageArray
from t2i.names import shown, some
from t2i.scoring.images.collection import CHUNK, CHUNK_BYTES, Pictures, ahead, choose

ADM = "arr_0"  # the pictures of an .npz


def open_pictures(place: str, n: int | None = None, skip_broken: bool = False) -> Pictures:
    """Pictures of any size below a folder, in a .tar or in an .npz, with the first caption of each if all have one.

    Args:
        n: which ones depends on n alone; None: all.
        skip_broken: leaves out what cannot be decoded, and counts it.

    Raises:
        InputError: no such file or folder, no pictures, fewer than n, one of them is broken, or what no picture file holds.
    """
    lower = place.lower()
    if lower.endswith(".npz"):
        return npz_pictures(Path(place).expanduser(), n)
    if lower.endswith(".tar"):
        return tar_pictures(Path(place).expanduser(), n, skip_broken)
    return folder_pictures(place, n, skip_broken)


# ---- a folder ------------------------------------------------------------------------------------------------------


def folder_pictures(folder: str, n: int | None = None, skip_broken: bool = False) -> Pictures:
    """Of a folder that `t2i sample` wrote, the pictures and prompts in its manifest."""
    index = index_folder(folder)
    if index.problems:
        raise InputError(index.problems[0])
    manifest = _sampled(index.root)
    prompts = {entry["file"]: entry["prompt"] for entry in manifest.get("pictures", [])}
    every = [name for name in index.files if name in prompts or not prompts]  # not its grid.png
    names = [every[k] for k in choose(len(every), len(every) if n is None else n, shown(index.root))]
    found = verify(index.root, index.files, names)
    written = {name: captions[0] for name, captions in index.captions.items()} | prompts
    return _encoded(
        f"folder:{index.root}",
        shown(index.root),
        {name: found[name] for name in names},
        written,
        lambda name: index.root / index.files[name],
        skip_broken,
        manifest.get("reranking"),
    )


def _sampled(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `t2i sample` wrote; empty if it is another."""
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and {"pictures", "checkpoint", "seed"} <= found.keys() else {}


# ---- a tar ---------------------------------------------------------------------------------------------------------


def tar_pictures(path: Path, n: int | None = None, skip_broken: bool = False) -> Pictures:
    """Members `key.png` with `key.txt` or `key.json`; read where they lie."""
    members, passed = list_tar(path)
    odd = {what: count for what, count in passed.items() if count and what not in _USUAL}
    if odd:
        told = ", ".join(f"{count:,} {what}" for what, count in odd.items())
        raise InputError(f"{shown(path)} holds {told}; pack plain files again, with names below the folder")
    keys = list(members)
    if not keys:
        raise InputError(f"no pictures ({' '.join(images.SUFFIXES)}) in {shown(path)}; name the tar that holds them")
    names = [keys[k] for k in choose(len(keys), len(keys) if n is None else n, shown(path))]

    def load(name: str) -> bytes:
        with open(path, "rb") as file:
            return os.pread(file.fileno(), min(members[name].size, images.MAX_BYTES + 1), members[name].offset)

    with ThreadPoolExecutor(workers()) as pool:
        found = dict(zip(names, pool.map(lambda name: _verified(load(name)), names), strict=True))
    captions = {name: members[name].captions[0] for name in names if members[name].captions}
    return _encoded(f"tar:{path}", shown(path), found, captions, load, skip_broken)


# what a tar of pictures may hold beside them
_USUAL = ("folders", "other members", "captions without an image", "images without a caption")


def _verified(data: bytes) -> Verified:
    digest = hashlib.sha256(data).hexdigest()
    try:
        width, height = images.decode(data).size
    except images.BrokenImage as error:
        return Verified(len(data), 0, sha256=digest, reason=str(error))
    small = f"{width}x{height} pixels: too small to be a picture" if min(width, height) < MIN_SIDE else ""
    return Verified(len(data), 0, width, height, sha256=digest, reason=small)


# ---- both ----------------------------------------------------------------------------------------------------------


def _encoded(
    address: str,
    place: str,
    found: dict[str, Verified],
    written: dict[str, str],
    load: Callable[[str], Path | bytes],
    skip_broken: bool,
    chosen: dict[str, Any] | None = None,
) -> Pictures:
    """Of encoded pictures, by their names: what decoding them found, and their captions as far as they have some."""
    names = [name for name in found if not found[name].reason]
    if broken := [name for name in found if found[name].reason]:
        first = f"{shown(broken[0])}: {found[broken[0]].reason}"
        more = f", and {some(broken[1:])}" if broken[1:] else ""
        if not skip_broken:
            raise InputError(
                f"cannot score {place}: broken {first}{more}; repair or remove what is broken, or leave it out with "
                "--skip-broken"
            )
        if len(names) < 2:
            raise InputError(f"of {len(found):,} pictures in {place} {len(broken):,} are broken, as {first}")
    captions = [written[name] for name in names if name in written]
    digest = hashlib.sha256(json.dumps([[name, found[name].sha256] for name in names] + captions).encode())
    sizes = [(found[name].width, found[name].height) for name in names]
    sides = {side for size in sizes for side in size}

    def decoded(wanted: Sequence[int]) -> Iterator[list[ImageArray]]:
        with ThreadPoolExecutor(workers()) as pool:
            for part in _parts(wanted, [3 * width * height for width, height in sizes]):
                yield list(pool.map(lambda k: _decode(load(names[k]), names[k], place), part))

    return Pictures(
        address,
        None,
        names,
        captions if len(captions) == len(names) else None,
        digest.hexdigest(),
        sides.pop() if len(sides) == 1 else None,
        lambda wanted: ahead(decoded(wanted)),
        chosen,
        _mixed(sizes),
        len(broken),
    )


def _mixed(sizes: Sequence[tuple[int, int]]) -> str | None:
    """`of 3 sizes, 24x24 to 40x32`; None where all are of one."""
    counts = Counter(sizes)
    least, most = (f(counts, key=lambda size: size[0] * size[1]) for f in (min, max))
    return f"of {len(counts):,} sizes, {least[0]}x{least[1]} to {most[0]}x{most[1]}" if len(counts) > 1 else None


def _parts(wanted: Sequence[int], nbytes: Sequence[int]) -> Iterator[list[int]]:
    part: list[int] = []
    for k in wanted:
        if part and (len(part) == CHUNK or sum(nbytes[i] for i in part) + nbytes[k] > CHUNK_BYTES):
            yield part
            part = []
        part.append(k)
    if part:
        yield part


def _decode(source: Path | bytes, name: str, place: str) -> ImageArray:
    try:
        return np.asarray(images.decode(source))
    except images.BrokenImage as error:  # since it was verified
        raise InputError(f"{shown(name)} in {place}: {error}; repair or remove it and score again") from error


# ---- an .npz -------------------------------------------------------------------------------------------------------


def npz_pictures(path: Path, n: int | None = None) -> Pictures:
    """`arr_0`, uint8 [N, H, W, 3]; read row by row, however large it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            shape = _header(archive, path)
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {error.strerror or error}; name an .npz of pictures") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{shown(path)} is not an .npz file ({error}); write it with numpy.savez") from error
    count, height, width, _ = shape
    rows = choose(count, count if n is None else n, shown(path))
    at_once = max(1, min(CHUNK, CHUNK_BYTES // (3 * height * width)))

    def read(wanted: Sequence[int]) -> Iterator[list[ImageArray]]:
        if not wanted:
            return
        try:
            yield from _rows(path, shape, [rows[k] for k in wanted], at_once)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputError(f"{shown(path)} is damaged ({error}); write it again") from error

    return Pictures(
        f"npz:{path}",
        None,
        [str(row) for row in rows],
        None,
        hashlib.sha256(json.dumps([content, rows]).encode()).hexdigest(),
        height if height == width else None,
        lambda wanted: ahead(read(wanted)),
    )


def npz_names(path: Path) -> list[str]:
    """The arrays of an .npz.

    Raises:
        InputError: it is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {error.strerror or error}; name an .npz file") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{shown(path)} is not an .npz file ({error}); write it with numpy.savez") from error


def _header(archive: zipfile.ZipFile, path: Path) -> tuple[int, int, int, int]:
    """The shape of the pictures, checked against what the file can hold."""
    if f"{ADM}.npy" not in archive.namelist():
        there = ", ".join(archive.namelist()[:5]) or "nothing"
        raise InputError(f"{shown(path)} holds no {ADM}, but {there[:120]}; pictures are {ADM}, uint8 [N, H, W, 3]")
    with archive.open(f"{ADM}.npy") as file:
        try:
            shape, fortran, kind = _npy_header(file)
        except (ValueError, OverflowError, SyntaxError, TypeError) as error:
            reason = str(error).splitlines()[0][:120]
            raise InputError(f"{shown(path)}: {ADM} has no header that can be read ({reason})") from error
        start = file.tell()
    size = archive.getinfo(f"{ADM}.npy").file_size - start
    if len(shape) != 4 or shape[3] != 3 or kind != np.uint8 or fortran or min(shape) < 1:
        raise InputError(f"{shown(path)}: {ADM} is {kind} {list(shape)}, and pictures are uint8 [N, H, W, 3]")
    if math.prod(shape) != size or max(shape[1:3]) > images.MAX_SIDE or shape[1] * shape[2] > images.MAX_PIXELS:
        raise InputError(
            f"{shown(path)}: {ADM} of {list(shape)} does not fit its {size:,} bytes, or is over the limits"
        )
    return shape


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _rows(path: Path, shape: Sequence[int], rows: Sequence[int], at_once: int) -> Iterator[list[ImageArray]]:
    """Pictures at `rows`, which rise; what lies between is read over."""
    height, width = shape[1:3]
    nbytes = 3 * height * width
    with zipfile.ZipFile(path) as archive, archive.open(f"{ADM}.npy") as file:
        _npy_header(file)
        at, chunk = 0, []
        for row in rows:
            file.seek((row - at) * nbytes, os.SEEK_CUR)
            data = file.read(nbytes)
            if len(data) < nbytes:
                raise EOFError(f"it ends in picture {row}")
            chunk.append(np.frombuffer(data, np.uint8).reshape(height, width, 3))
            at = row + 1
            if len(chunk) == at_once:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
