"""Templates of a page that needs no other file: Jinja2 escapes every text, and every image is inside as text.

A caption, a name or a config of the user's reaches a page through the escaping of Jinja2 alone.
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
PIXEL_SIDE = 96  # an image up to this size is shown with its pixels, without loss
MOST_SIDE = 256  # a larger image is scaled down to this
SHEET_SIDE, SHEET_BYTES = 1400, 150_000  # largest contact sheet; beyond the bytes it is compressed with loss
LONG = 120  # characters of a caption that are shown before it is folded
SPOKEN = 200  # characters of a caption in the alternative text of an image


class Inline(NamedTuple):
    """An image as text."""

    source: str  # a data URI
    width: int
    height: int
    pixels: bool = False  # so small that every pixel is shown as a square


@cache
def environment(folder: Path = FOLDER) -> Environment:
    """The templates of a folder, which may use those of this one, with the filters and tests that they use."""
    found = Environment(
        loader=FileSystemLoader([folder, FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["inline"] = inline
    found.filters["spoken"] = lambda text: text if len(text) <= SPOKEN else text[: SPOKEN - 3] + "..."
    found.tests["long"] = lambda text: len(text) > LONG
    return found


def render(name: str, folder: Path = FOLDER, **values: Any) -> Markup:
    """A template of a folder with these values, as markup that a page takes as it is."""
    return Markup(environment(folder).get_template(name).render(values))


def style(*names: str) -> Markup:
    """Style sheets of this folder, one after the other."""
    return Markup("".join((FOLDER / name).read_text("utf-8") for name in names))


def inline(pixels_HWC: ImageArray) -> Inline:
    """Encodes a small image without loss; scales a large one down to `MOST_SIDE`."""
    image = Image.fromarray(np.ascontiguousarray(pixels_HWC))
    if max(image.size) <= PIXEL_SIDE:
        return Inline(_uri(image, {"format": "PNG", "optimize": True}), *image.size, pixels=True)
    image.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
    return Inline(_uri(image, {"format": "WEBP", "quality": 85, "method": 4}), *image.size)


def inline_sheet(path: Path) -> Inline | str:
    """A contact sheet from a file, or one line that says why there is none."""
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
