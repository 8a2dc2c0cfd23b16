"""Renders templates of pages that need no other file: images are embedded as data URIs.

Captions, names and configs of the user reach a page only through the escaping of Jinja2.
"""

import base64
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from t2i.images import BrokenImage, ImageArray, decode

FOLDER = Path(__file__).parent
PIXEL_SIDE = 96  # images up to this size are lossless and show their pixels
MOST_SIDE = 256  # larger images are scaled down to this size
SHEET_SIDE, SHEET_BYTES = 1400, 150_000  # limits of a contact sheet; one with more bytes is compressed with loss
LONG = 120  # longer captions are folded
SPOKEN = 200  # characters of a caption in the alternative text of an image


class Inline(NamedTuple):
    """An image as a data URI."""

    source: str
    width: int
    height: int
    pixels: bool = False  # shows every pixel as a square


@cache
def environment(folder: Path = FOLDER) -> Environment:
    """Returns the Jinja2 environment of a folder's templates, which may include those of this folder."""
    result = Environment(
        loader=FileSystemLoader([folder, FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    result.filters["inline"] = inline
    result.filters["spoken"] = lambda text: text if len(text) <= SPOKEN else text[: SPOKEN - 3] + "..."
    result.tests["long"] = lambda text: len(text) > LONG
    return result


def render(name: str, folder: Path = FOLDER, **values: Any) -> Markup:
    """Renders a template of a folder; the result is not escaped again."""
    return Markup(environment(folder).get_template(name).render(values))


def style(*names: str) -> Markup:
    """Returns the concatenated style sheets of this folder."""
    return Markup("".join((FOLDER / name).read_text("utf-8") for name in names))


def inline(pixels_HWC: ImageArray) -> Inline:
    """Encodes a small image without loss; scales a large one down to `MOST_SIDE`."""
    image = Image.fromarray(np.ascontiguousarray(pixels_HWC))
    if max(image.size) <= PIXEL_SIDE:
        return Inline(_uri(image, {"format": "PNG", "optimize": True}), *image.size, pixels=True)
    image.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
    return Inline(_uri(image, {"format": "WEBP", "quality": 85, "method": 4}), *image.size)


def inline_sheet(path: Path) -> Inline | str:
    """Reads a contact sheet; returns a line with the reason if it cannot be read."""
    try:
        image = decode(path)
    except (BrokenImage, OSError) as error:
        return f"{path.name}: {getattr(error, 'strerror', None) or error}"
    image.thumbnail((SHEET_SIDE, SHEET_SIDE), Image.Resampling.LANCZOS)
    source = _uri(image, {"format": "WEBP", "lossless": True, "method": 3})
    if len(source) > SHEET_BYTES:
        source = _uri(image, {"format": "WEBP", "quality": 75, "method": 4})
    return Inline(source, *image.size)


def _uri(image: Image.Image, how: Mapping[str, Any]) -> str:
    file = io.BytesIO()
    image.save(file, **how)
    return f"data:image/{how['format'].lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
