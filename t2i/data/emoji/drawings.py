"""Drawings of emoji by key: a folder of files named by code point, or a colour font. A style is the name of one.

Layout of the cache: CACHE/emoji/KEY.arrow, a table for each style and resolution, made by the first opening: PNG of each drawing
on white, its perceptual signature, its hue, and why one does not render.
"""

import hashlib
import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from t2i.data.cached import Keep
from t2i.data.emoji.names import codes_of, names, need, toned
from t2i.data.emoji.tints import NONE, hue_of
from t2i.data.packed.dataset import indexed, schema
from t2i.data.phash import signatures
from t2i.errors import InputError
from t2i.images import SUFFIXES, TRANSFORM, BrokenImage, decode, fit, read_limited
from t2i.names import shown, some

if TYPE_CHECKING:
    import pyarrow as pa

DRAWING = 2  # raised when the same file comes to give other pixels
SIGNED_SIDE = 64  # pixels of the drawing that the signature is of, so that it is the same at all resolutions
_FONTS = (".ttf", ".otf", ".ttc")
_COLOURS = ("CBDT", "sbix", "COLR", "SVG ")
_NAME = re.compile(r"(?:emoji_)?u?([0-9a-f]{2,6}(?:[-_ ][0-9a-f]{2,6})*)", re.IGNORECASE)
_AT_ONCE = 64  # glyphs of a font in one rendering: each reads the font anew


class Drawing(NamedTuple):
    """One drawing: its key, sha256 of what it is made from, and the RGB image, or why there is none."""

    key: str
    sha256: bytes
    image: "Image.Image | str"


class Style(ABC):
    """One vendor's drawings."""

    name: str
    keys: Sequence[str]
    files: Sequence[Path]  # that decide the drawings
    maker: str  # of pixels, with its version

    @abstractmethod
    def drawn(self, keys: Sequence[str], side: int) -> Iterator[Drawing]:
        """Yields the drawings of some keys, in their order."""

    def index(self, side: int, tones: bool = False) -> "pa.Table":
        """Returns the table of all drawings at one resolution; of variants with a skin tone only where `tones` is true."""
        keys = [key for key in self.keys if tones or not toned(key)]
        settings = [DRAWING, TRANSFORM, self.maker, Image.__version__, side, keys]
        return indexed("emoji", self.files, settings, _schema, lambda counts, keep: self._rows(keys, side, keep))

    def _rows(self, keys: Sequence[str], side: int, keep: Keep) -> Iterator[dict[str, Any]]:
        for start in range(0, len(keys), _AT_ONCE):
            some_keys = keys[start : start + _AT_ONCE]
            drawings = list(self.drawn(some_keys, side))
            small = drawings if side == SIGNED_SIDE else self.drawn(some_keys, SIGNED_SIDE)
            for (key, content, image), (_, _, signed) in zip(drawings, small, strict=True):
                row = {"key": key, "captions": [], "sha256": content, "reason": ""}
                if isinstance(image, str) or isinstance(signed, str):
                    yield row | {"offset": 0, "size": 0, "signature": bytes(56), "hue": NONE, "reason": str(image)}
                    continue
                hashes, colors = signatures(np.asarray(signed)[None])
                hue = hue_of(np.asarray(signed))
                signature = hashes[0].tobytes() + colors[0].tobytes()
                data = png_of(image)
                yield row | {"offset": keep(data), "size": len(data), "signature": signature, "hue": hue}


def _schema() -> "pa.Schema":
    import pyarrow as pa

    more = {
        "offset": pa.int64(),
        "size": pa.int64(),
        "signature": pa.binary(56),
        "hue": pa.float32(),
        "reason": pa.string(),
    }
    return schema(more)


def png_of(image: Image.Image) -> bytes:
    """Returns an image as a PNG file."""
    packed = io.BytesIO()
    image.save(packed, "PNG")
    return packed.getvalue()


class FolderStyle(Style):
    """SVG or image files named by code point, as OpenMoji, Twemoji and Noto name theirs."""

    def __init__(self, name: str, root: Path) -> None:
        found: dict[str, Path] = {}
        for path in sorted(root.iterdir()):  # of a drawing in two formats the SVG
            suffix, meant = path.suffix.lower(), _NAME.fullmatch(path.stem)
            if meant and suffix in (".svg", *SUFFIXES):
                key = "-".join(f"{code:X}" for code in _codes(meant[1]) if code != 0xFE0F)
                if key and (key not in found or suffix == ".svg"):
                    found[key] = path
        if not found:
            there = some(sorted(os.listdir(root)), 5) or "nothing"
            raise InputError(
                f"no drawings named by code point, such as 1F355.svg or 1f355.png, in {shown(root)}; found {there}; name the "
                "folder that holds them"
            )
        self.name, self._paths = name, found
        self.keys, self.files = list(found), list(found.values())
        self.maker = renderer() if any(path.suffix.lower() == ".svg" for path in self.files) else "pillow"

    def drawn(self, keys: Sequence[str], side: int) -> Iterator[Drawing]:
        for key in keys:
            path = self._paths[key]
            data = b""
            try:
                data = read_limited(path)
                image = of_svg(data, side) if path.suffix.lower() == ".svg" else decode(data)
                found: Image.Image | str = Image.fromarray(fit(image, side, "pad"))
            except OSError as error:
                found = f"{shown(path.name)} cannot be read: {error.strerror or error}"
            except BrokenImage as error:
                found = f"{shown(path.name)}: {error}"
            yield Drawing(key, hashlib.sha256(data).digest(), found)


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
            there, self._family = set(font.keys()), font["name"].getBestFamilyName()
            known = set(font.getBestCmap() or ())
            box = font["hhea"]
            self._ascent, high = box.ascent / font["head"].unitsPerEm, box.ascent - box.descent
            self._side = max(high, font["hmtx"].metrics[font.getBestCmap()[max(known)]][0]) / font["head"].unitsPerEm
            self._below = (self._side - high / font["head"].unitsPerEm) / 2
        except Exception as error:  # fontTools raises its own, struct.error, KeyError, AssertionError, ... on damage
            reason = (str(error).splitlines() or [""])[0][:80]
            raise InputError(f"cannot read the font {shown(path)} ({reason}); download it again") from error
        if not there & set(_COLOURS):
            raise InputError(
                f"font {shown(path)} has no colour glyphs (no table CBDT, sbix, COLR or SVG); name a colour emoji font, "
                "such as NotoColorEmoji.ttf"
            )
        self.name, self._path, self.files, self.maker = name, path, [path], renderer()
        self._content = hashlib.sha256(path.read_bytes()).digest()
        drawable = known | {0xFE0F, 0x200D}
        self._texts = {key: own.text for key, own in names().items() if set(codes_of(key)) <= drawable}
        self.keys = sorted(self._texts)
        if not self.keys:
            raise InputError(f"font {shown(path)} has no glyph of an emoji; name a colour emoji font")

    def drawn(self, keys: Sequence[str], side: int) -> Iterator[Drawing]:
        # each in a cell three times as wide, so that a sequence that the font does not draw as one is seen
        em, texts = side / self._side, []
        for row, key in enumerate(keys):
            y = row * side + (self._below + self._ascent) * em
            place = f'x="{1.5 * side}" y="{y}" text-anchor="middle"'
            texts.append(f'<text {place} font-size="{em}" font-family="{self._family}">{self._texts[key]}</text>')
        size = f'width="{3 * side}" height="{len(keys) * side}"'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(texts)}</svg>'
        try:
            sheet = _render(svg, 3 * side, font_files=[os.fspath(self._path)])
        except BrokenImage as error:
            raise InputError(f"font {shown(self._path)} {error}; download it again") from error
        for row, key in enumerate(keys):
            cell = sheet.crop((0, row * side, 3 * side, (row + 1) * side))
            box = cell.getchannel("A").getbbox()
            found: Image.Image | str = _on_white(cell.crop((side, 0, 2 * side, side)))
            if box is None:
                found = "the font draws nothing"
            elif box[0] < 0.8 * side or box[2] > 2.2 * side:
                found = "the font draws it as several"
            yield Drawing(key, hashlib.sha256(self._content + key.encode()).digest(), found)


def renderer() -> str:
    return f"resvg {need('resvg_py', 'resvg-py').__resvg_version__} {version('resvg-py')}"


def of_svg(data: bytes, side: int) -> "Image.Image":
    """Returns an SVG as RGB on white, its longer side `side` pixels.

    Raises:
        BrokenImage: it does not render.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenImage("is not UTF-8") from error
    image = _render(text, side)
    if image.height > side:
        image = _render(text, max(1, round(side * side / image.height)))
    if image.getchannel("A").getbbox() is None:
        raise BrokenImage("draws nothing")
    return _on_white(image)


def _render(svg: str, width: int, **more: Any) -> "Image.Image":
    render = need("resvg_py", "resvg-py").svg_to_bytes
    try:
        return Image.open(
            io.BytesIO(bytes(render(svg_string=svg, width=width, skip_system_fonts=True, **more)))
        ).convert("RGBA")
    except BaseException as error:  # a panic of the renderer is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
            raise BrokenImage(f"does not render ({reason})") from error
        raise


def _on_white(image: "Image.Image") -> "Image.Image":
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
