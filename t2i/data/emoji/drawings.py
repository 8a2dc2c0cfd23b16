"""Styles of drawings of emoji: a folder of files named by code point, or a colour font.

The cache has a table CACHE/emoji/KEY.arrow for each style and resolution, written when it is first opened: a PNG of each drawing
on white, its perceptual signature and its hue, or the reason why it cannot be rendered.
"""

import hashlib
import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.parsers import expat

import numpy as np
from PIL import Image

from t2i.data.cached import Keep
from t2i.data.emoji.names import codes_of, names, need, toned
from t2i.data.emoji.tints import NONE, hue_of
from t2i.data.packed.dataset import indexed, schema
from t2i.data.phash import pack, signatures
from t2i.errors import InputError
from t2i.files import contents
from t2i.images import SUFFIXES, TRANSFORM, BrokenImage, decode, fit, read_limited
from t2i.names import brief, shown

if TYPE_CHECKING:
    import pyarrow as pa

DRAWING = 2  # version of the rendering, raised with every change of pixels
SIGNED_SIDE = 64  # side in pixels for signatures, so that they are the same at all resolutions
_FONTS = (".ttf", ".otf", ".ttc")
_COLOURS = ("CBDT", "sbix", "COLR", "SVG ")
_NAME = re.compile(r"(?:emoji_)?u?([0-9a-f]{2,6}(?:[-_ ][0-9a-f]{2,6})*)", re.IGNORECASE)
MOST_NESTED = 200  # elements; the renderer recurses, and at 250 its stack overflows, which ends the program
_AT_ONCE = 64  # glyphs in one rendering, as each rendering reads the font


class Drawing(NamedTuple):
    """One drawing: its key, the sha256 of its source, and the RGB image or the reason why there is none."""

    key: str
    sha256: bytes
    image: "Image.Image | str"


class Style(ABC):
    """One vendor's drawings."""

    name: str
    keys: Sequence[str]
    files: Sequence[Path]  # source of the drawings
    renderer: str  # library that renders them, with its version

    @abstractmethod
    def render(self, keys: Sequence[str], side: int) -> Iterator[Drawing]:
        """Yields the drawings of these keys, in this order."""

    def index(self, side: int, tones: bool = False) -> "pa.Table":
        """Returns the table of all drawings at one resolution, without variants with a skin tone unless `tones` is set."""
        keys = [key for key in self.keys if tones or not toned(key)]
        settings = [DRAWING, TRANSFORM, self.renderer, Image.__version__, side, keys]
        return indexed("emoji", self.files, settings, _schema(), lambda counts, keep: self._rows(keys, side, keep))

    def _rows(self, keys: Sequence[str], side: int, keep: Keep) -> Iterator[dict[str, Any]]:
        for start in range(0, len(keys), _AT_ONCE):
            some_keys = keys[start : start + _AT_ONCE]
            drawings = list(self.render(some_keys, side))
            small = drawings if side == SIGNED_SIDE else self.render(some_keys, SIGNED_SIDE)
            for (key, content, image), (_, _, signed) in zip(drawings, small, strict=True):
                row = {"key": key, "captions": [], "sha256": content, "reason": ""}
                if isinstance(image, str) or isinstance(signed, str):
                    yield row | {"offset": 0, "size": 0, "signature": bytes(56), "hue": NONE, "reason": str(image)}
                    continue
                hue = hue_of(np.asarray(signed))
                (signature,) = pack(signatures(np.asarray(signed)[None]))
                data = png_of(image)
                yield row | {"offset": keep(data), "size": len(data), "signature": signature, "hue": hue}


def _schema() -> "pa.Schema":
    import pyarrow as pa

    columns = {
        "offset": pa.int64(),
        "size": pa.int64(),
        "signature": pa.binary(56),
        "hue": pa.float32(),
        "reason": pa.string(),
    }
    return schema(columns)


def png_of(image: Image.Image) -> bytes:
    """Returns an image as a PNG file."""
    packed = io.BytesIO()
    image.save(packed, "PNG")
    return packed.getvalue()


class FolderStyle(Style):
    """SVG or image files named by code point, like those of OpenMoji, Twemoji and Noto."""

    def __init__(self, name: str, root: Path) -> None:
        paths: dict[str, Path] = {}
        for path in sorted(root.iterdir()):  # SVGs have precedence over images
            suffix, match = path.suffix.lower(), _NAME.fullmatch(path.stem)
            if match and suffix in (".svg", *SUFFIXES):
                key = "-".join(f"{code:X}" for code in _codes(match[1]) if code != 0xFE0F)
                if key and (key not in paths or suffix == ".svg"):
                    paths[key] = path
        if not paths:
            raise InputError(
                f"no drawings named by code point, such as 1F355.svg or 1f355.png, in {shown(root)}; found {contents(root)}; "
                "name the folder that holds them"
            )
        self.name, self._paths = name, paths
        self.keys = list(paths)
        self.files = [path for path in paths.values() if path.exists()]  # dangling links count as broken drawings
        self.renderer = renderer() if any(path.suffix.lower() == ".svg" for path in self.files) else "pillow"

    def render(self, keys: Sequence[str], side: int) -> Iterator[Drawing]:
        for key in keys:
            path = self._paths[key]
            data = b""
            try:
                data = read_limited(path)
                decoded = of_svg(data, side) if path.suffix.lower() == ".svg" else decode(data)
                image: Image.Image | str = Image.fromarray(fit(decoded, side, "pad"))
            except OSError as error:
                image = f"{shown(path.name)} cannot be read: {error.strerror or error}"
            except BrokenImage as error:
                image = f"{shown(path.name)}: {error}"
            yield Drawing(key, hashlib.sha256(data).digest(), image)


def _codes(text: str) -> list[int]:
    return [int(code, 16) for code in re.split(r"[-_ ]", text)]


class FontStyle(Style):
    """The glyphs of a colour font: bitmap strikes, layers (COLR 0 and 1) or SVG."""

    def __init__(self, name: str, path: Path) -> None:
        fonts = need("fontTools.ttLib", "fonttools")
        if path.suffix.lower() not in _FONTS:
            raise InputError(f"font {shown(path)} is not one of {', '.join(_FONTS)}; convert it")
        try:
            font = fonts.TTFont(path, lazy=True, fontNumber=0)
            tables, self._family = set(font.keys()), font["name"].getBestFamilyName()
            known = set(font.getBestCmap() or ())
            box = font["hhea"]
            self._ascent, high = box.ascent / font["head"].unitsPerEm, box.ascent - box.descent
            self._side = max(high, font["hmtx"].metrics[font.getBestCmap()[max(known)]][0]) / font["head"].unitsPerEm
            self._below = (self._side - high / font["head"].unitsPerEm) / 2
        except Exception as error:  # damaged fonts raise TTLibError, struct.error, KeyError, AssertionError, ...
            raise InputError(f"cannot read the font {shown(path)} ({brief(error, 80)}); download it again") from error
        if not tables & set(_COLOURS):
            raise InputError(
                f"font {shown(path)} has no colour glyphs (no table CBDT, sbix, COLR or SVG); name a colour emoji font, "
                "such as NotoColorEmoji.ttf"
            )
        self.name, self._path, self.files, self.renderer = name, path, [path], renderer()
        self._content = hashlib.sha256(path.read_bytes()).digest()
        drawable = known | {0xFE0F, 0x200D}
        self._texts = {key: entry.text for key, entry in names().items() if set(codes_of(key)) <= drawable}
        self.keys = sorted(self._texts)
        if not self.keys:
            raise InputError(f"font {shown(path)} has no emoji; name a colour emoji font")

    def render(self, keys: Sequence[str], side: int) -> Iterator[Drawing]:
        # cells are three times as wide as high, to detect sequences that the font draws as several glyphs
        em, texts = side / self._side, []
        for row, key in enumerate(keys):
            y = row * side + (self._below + self._ascent) * em
            place = f'x="{1.5 * side}" y="{y}" text-anchor="middle"'
            texts.append(f'<text {place} font-size="{em}" font-family="{self._family}">{self._texts[key]}</text>')
        size = f'width="{3 * side}" height="{len(keys) * side}"'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(texts)}</svg>'
        try:
            sheet = _render(svg, 3 * side, len(keys) * side, font_files=[os.fspath(self._path)])
        except BrokenImage as error:
            raise InputError(f"font {shown(self._path)} {error}; download it again") from error
        for row, key in enumerate(keys):
            cell = sheet.crop((0, row * side, 3 * side, (row + 1) * side))
            box = cell.getchannel("A").getbbox()
            image: Image.Image | str = _on_white(cell.crop((side, 0, 2 * side, side)))
            if box is None:
                image = "the font draws nothing"
            elif box[0] < 0.8 * side or box[2] > 2.2 * side:
                image = "the font draws several glyphs"
            yield Drawing(key, hashlib.sha256(self._content + key.encode()).digest(), image)


def renderer() -> str:
    """Returns the SVG renderer with its version."""
    return f"resvg {need('resvg_py', 'resvg-py').__resvg_version__} {version('resvg-py')}"


def of_svg(data: bytes, side: int) -> "Image.Image":
    """Renders an SVG as RGB on white; its longer side has `side` pixels.

    Raises:
        BrokenImage: the SVG cannot be rendered or draws nothing.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenImage("is not UTF-8") from error
    if not text.strip():
        raise BrokenImage("is empty")
    if _nesting(data) > MOST_NESTED:
        raise BrokenImage(f"may nest more than {MOST_NESTED} elements in each other")
    # width and height together: the renderer fits the drawing into them, and a tall one cannot exhaust the memory
    image = _render(text, side, side)
    if image.getchannel("A").getbbox() is None:
        raise BrokenImage("draws nothing")
    return _on_white(image)


def _nesting(svg: bytes) -> int:
    """Returns an upper bound of the depth of nested elements, in which each `use` may nest all others once more.

    Reading ends at the first error, which the renderer reports.
    """
    depth = deepest = uses = 0

    def begin(name: str, _: Any) -> None:
        nonlocal depth, deepest, uses
        depth += 1
        deepest = max(deepest, depth)
        uses += name.endswith("use")

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    with suppress(expat.ExpatError, ValueError):
        parser.Parse(svg, True)
    return deepest * (1 + uses)


def _render(svg: str, width: int, height: int, **options: Any) -> "Image.Image":
    render = need("resvg_py", "resvg-py").svg_to_bytes
    try:
        return Image.open(
            io.BytesIO(bytes(render(svg_string=svg, width=width, height=height, skip_system_fonts=True, **options)))
        ).convert("RGBA")
    except BaseException as error:  # the PanicException of the renderer is not an Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise BrokenImage(f"does not render ({brief(error, 80)})") from error
        raise


def _on_white(image: "Image.Image") -> "Image.Image":
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
