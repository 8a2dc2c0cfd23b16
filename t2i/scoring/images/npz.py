"""Reads images from an .npz in the format of ADM's evaluator, uint8 [N, H, W, 3], row by row and thus of any size."""

import hashlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t2i import images
from t2i.errors import InputError
from t2i.files import open_regular
from t2i.images import ImageArray
from t2i.names import brief, shown
from t2i.scoring.images.collection import CHUNK, CHUNK_BYTES, Images, ahead, choose

ADM = "arr_0"  # the usual name of the array
FORMAT = "images must be uint8 [N, H, W, 3]"


def npz_images(path: Path, n: int | None = None) -> Images:
    """Opens the array `arr_0`, or the only array of the file.

    Raises:
        InputError: the file cannot be read, or holds no images; the message says how to write it.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            name, shape = _header(archive, path)
        with open_regular(path) as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {error.strerror or error}; name an .npz of images") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{shown(path)} is not an .npz file ({error}); write it with numpy.savez") from error
    count, height, width, _ = shape
    rows = choose(count, count if n is None else n, shown(path))
    at_once = max(1, min(CHUNK, CHUNK_BYTES // (3 * height * width)))

    def read(positions: Sequence[int]) -> Iterator[list[ImageArray]]:
        if not positions:
            return
        try:
            yield from _rows(path, name, shape, [rows[k] for k in positions], at_once)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputError(f"{shown(path)} is damaged ({error}); write it again") from error

    return Images(
        f"npz:{path}",
        None,
        [str(row) for row in rows],
        None,
        hashlib.sha256(json.dumps([content, rows]).encode()).hexdigest(),
        height if height == width else None,
        lambda positions: ahead(read(positions)),
        formats="lossless",
        total=count,
    )


def npz_names(path: Path) -> list[str]:
    """Returns the names of the arrays in an .npz; raises InputError if the file is not one."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {error.strerror or error}; name an .npz file") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{shown(path)} is not an .npz file ({error}); write it with numpy.savez") from error


def _header(archive: zipfile.ZipFile, path: Path) -> tuple[str, tuple[int, int, int, int]]:
    """Returns name and shape of the array of images, checked against the size of the file."""
    names = archive.namelist()
    member = names[0] if len(names) == 1 else f"{ADM}.npy"
    if member not in names or not member.endswith(".npy"):
        others = ", ".join(names[:5]) or "nothing"
        raise InputError(f"{shown(path)} holds no {ADM}, but {others[:120]}; {FORMAT}, saved as {ADM}")
    name = member.removesuffix(".npy")
    with archive.open(member) as file:
        try:
            shape, fortran, kind = _npy_header(file)
        except (ValueError, OverflowError, SyntaxError, TypeError) as error:
            raise InputError(f"{shown(path)}: the header of {name} cannot be read ({brief(error)})") from error
        start = file.tell()
    if wrong := _wrong(shape, fortran, kind):
        raise InputError(f"{shown(path)}: {name} is {kind} {list(shape)}, but {FORMAT}: {wrong}")
    if max(shape[1:3]) > images.MAX_SIDE or shape[1] * shape[2] > images.MAX_PIXELS:
        raise InputError(f"{shown(path)}: images of {shape[2]}x{shape[1]} pixels are too large; scale them down")
    size = archive.getinfo(member).file_size - start
    if math.prod(shape) != size:
        raise InputError(f"{shown(path)}: {name} of {list(shape)} does not fit its {size:,} bytes; write it again")
    return name, (shape[0], shape[1], shape[2], shape[3])


def _wrong(shape: tuple[int, ...], fortran: bool, kind: np.dtype) -> str:
    """Returns advice for an array that does not hold images, or "" if it does."""
    if len(shape) == 4 and shape[3] != 3 and shape[1] == 3:
        return "the channels come first; save x.transpose(0, 2, 3, 1)"
    if len(shape) == 4 and shape[3] in (1, 4):
        return f"it has {shape[3]} channel{'s' if shape[3] > 1 else ''}; save RGB"
    if len(shape) == 3 and shape[2] > 4:
        return "it has no channels; save numpy.stack([x] * 3, axis=-1)"
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        return "it has another shape; save an array of this shape"
    if kind != np.uint8:
        return "convert it, floats in [0, 1] with (x * 255).round().astype('uint8')"
    return "it is stored in Fortran order; save numpy.ascontiguousarray(x)" if fortran else ""


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _rows(path: Path, name: str, shape: Sequence[int], rows: Sequence[int], at_once: int) -> Iterator[list[ImageArray]]:
    """Yields the images at `rows`, which are sorted, in chunks."""
    height, width = shape[1:3]
    nbytes = 3 * height * width
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        _npy_header(file)
        position, chunk = 0, []
        for row in rows:
            file.seek((row - position) * nbytes, os.SEEK_CUR)
            data = file.read(nbytes)
            if len(data) < nbytes:
                raise EOFError(f"it ends in image {row}")
            chunk.append(np.frombuffer(data, np.uint8).reshape(height, width, 3))
            position = row + 1
            if len(chunk) == at_once:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
