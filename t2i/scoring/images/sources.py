"""Images in files: a folder, a tar as WebDataset writes it, an .npz as ADM's evaluator reads it.

Nothing is unpacked onto the disk, nothing unpickled. Every image is decoded once before any is scored, so that a broken one
is named in time. docs/scoring.md describes the layouts.
"""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from t2i import images
from t2i.data.folders.index import index_folder
from t2i.data.packed.tar import list_tar
from t2i.data.verify import MIN_SIDE, Verified, verify, workers
from t2i.errors import InputError
from t2i.files import open_regular
from t2i.images import ImageArray
from t2i.names import counted, numbered, shown, some
from t2i.scoring.images.collection import CHUNK, CHUNK_BYTES, Images, ahead, choose
from t2i.scoring.images.generated import read_generated
from t2i.scoring.images.npz import npz_images

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP"}  # others are lossless


def open_images(place: str, n: int | None = None, skip_broken: bool = False) -> Images:
    """Images of any size below a folder, in a .tar or in an .npz, with the first caption of each if all have one.

    Args:
        n: which ones depends on n alone; None: all.
        skip_broken: leaves out what cannot be decoded, and counts it.

    Raises:
        InputError: no such file or folder, no images, fewer than n, one of them is broken, or a file of another kind.
    """
    path = Path(place).expanduser()
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return npz_images(path, n)
    if suffix == ".tar":
        return tar_images(path, n, skip_broken)
    if path.is_file():
        hint = HINTS.get(suffix, "name a folder, a .tar or an .npz of images")
        raise InputError(
            f"{shown(path)} is a {suffix or 'file without a suffix'}, from which no images are read; {hint}"
        )
    return folder_images(place, n, skip_broken)


HINTS = {
    ".npy": "save it as numpy.savez('images.npz', arr_0=array)",
    ".zip": "unpack it and name the folder",
    ".gz": "unpack it and name the .tar or the folder",
    ".tgz": "unpack it and name the folder",
    ".png": "name the folder that holds it",
    ".jpg": "name the folder that holds it",
    ".parquet": "name it with --data parquet:FILE, or export its images into a folder",
}


# ---- a folder ------------------------------------------------------------------------------------------------------


def folder_images(folder: str, n: int | None = None, skip_broken: bool = False) -> Images:
    """Images of a folder and below; of folders that a generator wrote, those of its manifests with their prompts."""
    index = index_folder(folder)
    if index.unsupported:
        warnings.warn(
            f"{some(index.unsupported)} in {shown(index.root)}: images of this format are not read, and are left out; "
            "convert them to PNG",
            stacklevel=3,
        )
    made = read_generated(index.root, index.files)
    if index.problems and not made.prompts:
        warnings.warn(f"captions are not read: {index.problems[0]}", stacklevel=3)
    every = [name for name in index.files if name not in made.others]
    where = shown(index.root)
    names = [every[k] for k in choose(len(every), len(every) if n is None else n, where)]
    found = verify(index.root, index.files, names)
    written = {name: captions[0] for name, captions in index.captions.items()} | made.prompts
    found_images = _encoded(
        f"folder:{index.root}",
        where,
        {name: found[name] for name in names},
        written,
        lambda name: index.root / index.files[name],
        skip_broken,
    )
    return replace(found_images, chosen=made.chosen, total=len(every))


# ---- a tar ---------------------------------------------------------------------------------------------------------


def tar_images(path: Path, n: int | None = None, skip_broken: bool = False) -> Images:
    """Members `key.png` with `key.txt` or `key.json`, read without unpacking."""
    members, passed = list_tar(path)
    odd = {what: count for what, count in passed.items() if count and what not in _USUAL}
    if odd:
        told = ", ".join(numbered(count, what) for what, count in odd.items())
        raise InputError(f"{shown(path)} holds {told}; pack plain files again, with names below the folder")
    keys = list(members)
    if not keys:
        raise InputError(f"no images ({' '.join(images.SUFFIXES)}) in {shown(path)}; name the tar that holds them")
    names = [keys[k] for k in choose(len(keys), len(keys) if n is None else n, shown(path))]

    def load(name: str) -> bytes:
        with open_regular(path) as file:
            return os.pread(file.fileno(), min(members[name].size, images.MAX_BYTES + 1), members[name].offset)

    with ThreadPoolExecutor(workers()) as pool:
        found = dict(zip(names, pool.map(lambda name: _verified(load(name)), names), strict=True))
    captions = {name: members[name].captions[0] for name in names if members[name].captions}
    return _encoded(f"tar:{path}", shown(path), found, captions, load, skip_broken)


# what a tar of images may hold beside them
_USUAL = ("folders", "other members", "captions without an image", "images without a caption")


def _verified(data: bytes) -> Verified:
    digest = hashlib.sha256(data).hexdigest()
    try:
        width, height = images.decode(data).size
    except images.BrokenImage as error:
        return Verified(len(data), 0, sha256=digest, reason=str(error))
    small = f"{width}x{height} pixels: too small to be an image" if min(width, height) < MIN_SIDE else ""
    return Verified(len(data), 0, width, height, sha256=digest, reason=small)


# ---- both ----------------------------------------------------------------------------------------------------------


def _encoded(
    address: str,
    place: str,
    found: dict[str, Verified],
    written: dict[str, str],
    load: Callable[[str], Path | bytes],
    skip_broken: bool,
) -> Images:
    """A collection of encoded images.

    Args:
        found: name -> result of decoding it once.
        written: name -> caption, of those that have one.
        load: gives the file or the bytes of a name.
    """
    broken = [name for name in found if found[name].reason]
    names = [name for name in found if not found[name].reason]
    _refuse_broken(place, broken, found, skip_broken)
    captions = [written[name] for name in names if name in written]
    digest = hashlib.sha256(json.dumps([[name, found[name].sha256] for name in names] + captions).encode())
    sizes = [(found[name].width, found[name].height) for name in names]
    sides = {side for size in sizes for side in size}

    def decoded(wanted: Sequence[int]) -> Iterator[list[ImageArray]]:
        with ThreadPoolExecutor(workers()) as pool:
            for part in _parts(wanted, [3 * width * height for width, height in sizes]):
                yield list(pool.map(lambda k: _decode(load(names[k]), names[k], place), part))

    return Images(
        address,
        None,
        names,
        captions if len(captions) == len(names) else None,
        digest.hexdigest(),
        sides.pop() if len(sides) == 1 else None,
        lambda wanted: ahead(decoded(wanted)),
        sizes=_mixed(sizes),
        formats=" and ".join(sorted({FORMATS.get(Path(name).suffix.lower(), "lossless") for name in names})),
        skipped=len(broken),
        captioned=len(captions),
        total=len(found),
    )


def _refuse_broken(place: str, broken: Sequence[str], found: Mapping[str, Verified], skip: bool) -> None:
    """Refuses broken images, or with `skip` too few that are left."""
    if not broken:
        return
    first = f"{shown(broken[0])}: {found[broken[0]].reason}"
    more = f", and {some(broken[1:])}" if broken[1:] else ""
    if not skip:
        raise InputError(
            f"cannot score {place}: broken {first}{more}; repair or remove what is broken, or leave it out with "
            "--skip-broken"
        )
    if len(found) - len(broken) < 2:
        raise InputError(f"{len(broken):,} of {counted(len(found), 'image')} in {place} cannot be decoded, as {first}")


def _mixed(sizes: Sequence[tuple[int, int]]) -> str | None:
    """E.g. `of 3 sizes, 24x24 to 40x32`; None where all have one size."""
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
