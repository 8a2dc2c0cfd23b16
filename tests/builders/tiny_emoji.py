"""Tiny emoji: names like those of the `emoji` package, folders of drawings named by code point, colour fonts."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

SQUARE = "M10 10H62V62H10Z"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><path fill="{}" d="{}"/></svg>'


def names(*extra: str) -> SimpleNamespace:
    """Returns a module like `emoji`: people in variants, a heart, flags, a pizza, and `extra` letters named `thing A`."""
    rows = {
        "🍕": ("pizza", 2),
        "❤️": ("red_heart", 2),
        "❤": ("red_heart", 4),
        "🧑": ("person", 2),
        "👨": ("man", 2),
        "👩🏽": ("woman_medium_skin_tone", 2),
        "👩‍🦰": ("woman_red_hair", 2),
        "🧑‍🚀": ("astronaut", 2),
        "👩‍🚀": ("woman_astronaut", 2),
        "👨🏿‍🚀": ("man_astronaut_dark_skin_tone", 2),
        "🏃‍♀️": ("woman_running", 2),
        "🏃": ("person_running", 2),
        "👨‍👩‍👦": ("family_man_woman_boy", 2),
        "👨‍👦": ("family_man_boy", 2),
        "🇫🇷": ("France", 2),
        "🇲🇫": ("St._Martin", 2),
    }
    aliases = {"🇫🇷": [":flag_for_France:", ":fr:"], "🍕": [":pizza_slice:"], "🧑‍🚀": [":space_person:"]}
    data = {text: {"en": f":{name}:", "status": status} for text, (name, status) in rows.items()}
    data |= {letter: {"en": f":thing_{letter}:", "status": 2} for letter in extra}
    for text, own in aliases.items():
        data[text]["alias"] = own
    return SimpleNamespace(EMOJI_DATA=data)


def picture(key: int, size: int = 24) -> Image.Image:
    """Returns a block of one colour, at a different place for each key, on a transparent background."""
    random = np.random.default_rng(key)
    pixels = np.zeros((size, size, 4), np.uint8)
    left, top = random.integers(0, size // 2, 2)
    pixels[top : top + size // 2, left : left + size // 2] = (*random.integers(0, 200, 3), 255)
    return Image.fromarray(pixels)


def folder(root: Path, data: SimpleNamespace, offset: int = 0) -> Path:
    """Writes a PNG for each name, with file names like those of Twemoji: lower case, without variation selectors."""
    root.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(data.EMOJI_DATA):
        codes = "-".join(f"{ord(letter):x}" for letter in text if letter != "\ufe0f")
        picture(number + offset).save(root / f"{codes}.png")
    return root


def svg_folder(root: Path, colours: dict[str, str]) -> Path:
    """Writes a square of one colour for each code."""
    root.mkdir(parents=True, exist_ok=True)
    for code, colour in colours.items():
        (root / f"{code}.svg").write_text(SVG.format(colour, SQUARE))
    return root


def _builder(letters: str):
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, -200))
    for point in ((0, 800), (1000, 800), (1000, -200)):
        pen.lineTo(point)
    pen.closePath()
    glyphs = [".notdef", *(f"u{ord(letter):X}" for letter in letters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap({ord(letter): f"u{ord(letter):X}" for letter in letters})
    font.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Tiny Emoji", "styleName": "Regular", "psName": "TinyEmoji"}, mac=False)
    font.setupOS2(sTypoAscender=800, sTypoDescender=-200, usWinAscent=800, usWinDescent=200)
    font.setupPost()
    return font


def layered_font(path: Path, letters: str, version: int, color: tuple[float, float, float]) -> Path:
    """Writes a font whose glyphs are full squares of one colour, as layers (COLR)."""
    font = _builder(letters)
    glyphs = [f"u{ord(letter):X}" for letter in letters]
    paint = {"Format": 10, "Paint": {"Format": 2, "PaletteIndex": 0, "Alpha": 1.0}, "Glyph": ".notdef"}
    font.setupCPAL([[(*color, 1.0)]])
    font.setupCOLR({glyph: [(".notdef", 0)] if version == 0 else paint for glyph in glyphs}, version=version)
    font.save(path)
    return path


def bitmap_font(path: Path, letters: str, color: tuple[int, int, int]) -> Path:
    """Writes a font whose glyphs are PNGs of one colour (sbix)."""
    from fontTools.ttLib import newTable
    from fontTools.ttLib.tables.sbixGlyph import Glyph
    from fontTools.ttLib.tables.sbixStrike import Strike

    font = _builder(letters)
    packed = io.BytesIO()
    Image.new("RGBA", (64, 64), color).save(packed, "PNG")
    strike = Strike(ppem=64, resolution=72)
    for glyph in font.font.getGlyphOrder():
        strike.glyphs[glyph] = Glyph(
            glyphName=glyph, graphicType="png ", imageData=packed.getvalue(), originOffsetY=-13
        )
    font.font["sbix"] = table = newTable("sbix")
    vars(table).update(version=1, flags=1, strikes={64: strike})
    font.save(path)
    return path


def plain_font(path: Path, letters: str) -> Path:
    """Writes a font without colours."""
    _builder(letters).save(path)
    return path
