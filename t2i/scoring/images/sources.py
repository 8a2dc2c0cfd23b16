"""Opens images in files: a folder, a tar as WebDataset writes it, or an .npz as ADM's evaluator reads it.

Nothing is unpacked onto the disk or unpickled. Every image is decoded once before any is scored, so that broken images are
reported early. docs/scoring.md describes the layouts.
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
from statistics import median_low

import numpy as np

from t2i import images
from t2i.data import DATASETS
from t2i.data.folders.index import index_folder
from t2i.data.packed.tar import list_tar
from t2i.data.verify import MIN_SIDE, Verified, verify, workers
from t2i.errors import InputError
from t2i.files import at_home, open_regular
from t2i.images import ImageArray
from t2i.names import counted, numbered, shown, some
from t2i.scoring.images.collection import CHUNK, CHUNK_BYTES, Images, ahead, choose
from t2i.scoring.images.generated import read_generated
from t2i.scoring.images.npz import npz_images

FORMATS = {"JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WebP", "GIF": "GIF"}  # GIF has 256 colours; others are lossless
HEADERS = 64  # files of each format whose settings are read


def open_images(place: str, n: int | None = None, skip_broken: bool = False) -> Images:
    """Opens images of any size in a folder, a .tar or an .npz, with the first caption of each if all have one.

    Args:
        n: number of images; the choice depends only on n. None: all.
        skip_broken: skips images that cannot be decoded, and counts them.

    Raises:
        InputError: there is no such file or folder, it is of another kind, it has fewer than n images, or one is broken.
    """
    path = at_home(place)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return npz_images(path, n)
    if suffix == ".tar":
        return tar_images(path, n, skip_broken)
    if path.is_file():
        hint = HINTS.get(suffix, "name a folder, a .tar or an .npz of images")
        raise InputError(
            f"{shown(path)} is a {suffix or 'file without a suffix'}, which cannot be read as images; {hint}"
        )
    if not path.exists():
        data = place.split(":")[0] in DATASETS or place.startswith("shapes-")
        hint = "; a data set is named with --data" if data else ""
        raise InputError(f"'{shown(place)}' not found; name a folder, a .tar or an .npz of images{hint}")
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
    """Opens the images of a folder and its subfolders; in folders of a generator, those of its manifests with their prompts."""
    index = index_folder(folder)
    if index.unsupported:
        warnings.warn(
            f"skipped images of an unsupported format in {shown(index.root)}: {some(index.unsupported)}; convert them to PNG",
            stacklevel=3,
        )
    generated = read_generated(index.root, index.entries)
    if index.problems and not generated.prompts:
        warnings.warn(f"captions are not read: {index.problems[0]}", stacklevel=3)
    every = [name for name in index.entries if name not in generated.others]
    where = shown(index.root)
    names = [every[k] for k in choose(len(every), len(every) if n is None else n, where)]
    verified = verify(index.root, index.files(), names)
    verified = _refuse_broken(where, {name: verified[name] for name in names}, skip_broken)
    captions = {name: index.captions(name)[0] for name in index.captioned()} | generated.prompts
    opened = _encoded(f"folder:{index.root}", where, verified, captions, lambda name: index.root / index.path(name))
    return replace(opened, chosen=generated.chosen, skipped=len(names) - len(opened), total=len(every))


# ---- a tar ---------------------------------------------------------------------------------------------------------


def tar_images(path: Path, n: int | None = None, skip_broken: bool = False) -> Images:
    """Opens members `key.png` with captions in `key.txt` or `key.json`, without unpacking."""
    members, passed = list_tar(path)
    unusual = [numbered(count, kind) for kind, count in passed.items() if count and kind not in _USUAL]
    if unusual:
        raise InputError(
            f"{shown(path)} holds {', '.join(unusual)}; pack plain files again, with names below the folder"
        )
    keys = list(members)
    if not keys:
        raise InputError(f"no images ({' '.join(images.SUFFIXES)}) in {shown(path)}; name the tar that holds them")
    names = [keys[k] for k in choose(len(keys), len(keys) if n is None else n, shown(path))]

    def load(name: str) -> bytes:
        with open_regular(path) as file:
            return os.pread(file.fileno(), min(members[name].size, images.MAX_BYTES + 1), members[name].offset)

    with ThreadPoolExecutor(workers()) as pool:
        verified = dict(zip(names, pool.map(lambda name: _verified(load(name)), names), strict=True))
    verified = _refuse_broken(shown(path), verified, skip_broken)
    captions = {name: members[name].captions[0] for name in names if members[name].captions}
    opened = _encoded(f"tar:{path}", shown(path), verified, captions, load)
    return replace(opened, skipped=len(names) - len(opened), total=len(names))


# kinds of members that a tar of images may hold besides images with captions
_USUAL = ("folders", "other members", "captions without an image", "images without a caption")


def _verified(data: bytes) -> Verified:
    digest = hashlib.sha256(data).hexdigest()
    try:
        image = images.decode(data)
    except images.BrokenImage as error:
        return Verified(len(data), 0, sha256=digest, reason=str(error))
    width, height = image.size
    small = f"{width}x{height} pixels: too small to be an image" if min(width, height) < MIN_SIDE else ""
    return Verified(len(data), 0, width, height, image.format or "", sha256=digest, reason=small)


# ---- both ----------------------------------------------------------------------------------------------------------


def _encoded(
    address: str,
    place: str,
    verified: Mapping[str, Verified],
    captions_by_name: Mapping[str, str],
    load: Callable[[str], Path | bytes],
) -> Images:
    """Returns a collection of image files.

    Args:
        verified: name -> result of decoding it once.
        captions_by_name: the captions of images that have one.
        load: returns the file or the bytes of a name.
    """
    names = list(verified)
    captions = [captions_by_name[name] for name in names if name in captions_by_name]
    digest = hashlib.sha256(json.dumps([[name, verified[name].sha256] for name in names] + captions).encode())
    sizes = [(verified[name].width, verified[name].height) for name in names]
    sides = {side for size in sizes for side in size}

    def decode(positions: Sequence[int]) -> Iterator[list[ImageArray]]:
        with ThreadPoolExecutor(workers()) as pool:
            for part in _parts(positions, [3 * width * height for width, height in sizes]):
                yield list(pool.map(lambda k: _decode(load(names[k]), names[k], place), part))

    return Images(
        address,
        None,
        names,
        captions if len(captions) == len(names) else None,
        digest.hexdigest(),
        sides.pop() if len(sides) == 1 else None,
        lambda positions: ahead(decode(positions)),
        sizes=_mixed(sizes),
        formats=_formats(verified, load),
        captioned=len(captions),
    )


def _refuse_broken(place: str, verified: Mapping[str, Verified], skip: bool) -> dict[str, Verified]:
    """Returns the intact images; raises InputError for broken ones, or with `skip` if fewer than two are intact."""
    broken = [name for name in verified if verified[name].reason]
    if not broken:
        return dict(verified)
    first = f"{shown(broken[0])}: {verified[broken[0]].reason}"
    more = f", and {some(broken[1:])}" if broken[1:] else ""
    if not skip:
        raise InputError(
            f"cannot score {place}: broken {first}{more}; repair or remove broken images, or skip them with --skip-broken"
        )
    if len(verified) - len(broken) < 2:
        count = counted(len(verified), "image")
        raise InputError(f"{len(broken):,} of {count} in {place} cannot be decoded, such as {first}; repair them")
    return {name: result for name, result in verified.items() if not result.reason}


def _formats(verified: Mapping[str, Verified], load: Callable[[str], Path | bytes]) -> str:
    """Returns e.g. `JPEG of quality 75 (4:2:0) and lossless`: by contents, as suffixes may lie.

    The quality is the median of some, the subsampling of colours the most frequent one.
    """
    kinds: dict[str, list[str]] = {}
    for name, found in verified.items():
        kinds.setdefault(FORMATS.get(found.format, "lossless"), []).append(name)
    sample = {kind: names[:: max(1, len(names) // HEADERS)][:HEADERS] for kind, names in kinds.items()}
    words = {kind: kind for kind in kinds}
    if settings := [found for name in sample.get("JPEG", ()) if (found := images.jpeg_settings(load(name)))]:
        (chroma, _), *_ = Counter(found.chroma for found in settings).most_common(1)
        words["JPEG"] = (
            f"JPEG of quality {median_low(found.quality for found in settings)}{f' ({chroma})' * bool(chroma)}"
        )
    if all(images.is_lossless_webp(load(name)) for name in sample.get("WebP", ())):
        words["WebP"] = "lossless"
    return " and ".join(sorted({words[kind] for kind in kinds}))


def _mixed(sizes: Sequence[tuple[int, int]]) -> str | None:
    """Returns e.g. `of 3 sizes, 24x24 to 40x32`, or None if all sizes are equal."""
    counts = Counter(sizes)
    least, most = (f(counts, key=lambda size: size[0] * size[1]) for f in (min, max))
    return f"of {len(counts):,} sizes, {least[0]}x{least[1]} to {most[0]}x{most[1]}" if len(counts) > 1 else None


def _parts(positions: Sequence[int], nbytes: Sequence[int]) -> Iterator[list[int]]:
    part: list[int] = []
    for k in positions:
        if part and (len(part) == CHUNK or sum(nbytes[i] for i in part) + nbytes[k] > CHUNK_BYTES):
            yield part
            part = []
        part.append(k)
    if part:
        yield part


def _decode(source: Path | bytes, name: str, place: str) -> ImageArray:
    try:
        return np.asarray(images.decode(source))
    except images.BrokenImage as error:  # the file changed after it was verified
        raise InputError(f"{shown(name)} in {place}: {error}; repair or remove it and score again") from error
