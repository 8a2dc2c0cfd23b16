"""Writes text of any script on images, in fonts that have the characters; characters without a font are described in words."""

import os
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

MOST_FONTS = 300  # number of fonts searched for a character
# names of upright sans-serif fonts that cover many scripts, tried before all others
PREFERRED = (
    "dejavusans.", "notosans-regular", "liberationsans-regular", "notosanscjk-regular", "notosanssc", "notosansjp", "wqy",
    "droidsansfallback", "arialuni", "arial.", "msyh", "pingfang", "hiragino", "malgun", "notosansarabic", "notosanshebrew",
    "notosansdevanagari", "notosansthai", "segoeui.", "seguisym", "notoemoji", "symbola",
)  # fmt: skip

_MARKS = ("Mn", "Me")  # categories of accents, which are written onto the letter before


class Pen:
    """Measures and writes lines of text at one size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ascent = _ascent(_default(size))

    def spelled(self, text: str) -> str:
        """Returns text in which words replace characters without a font: `:cat face:`, `(2 CJK characters)`."""
        parts = []
        for font, run in self._runs(unicodedata.normalize("NFC", text)):
            parts.append(_in_words(run, _default(self.size)) if font is None else _without_lone_marks(run, font))
        return " ".join("".join(parts).split())

    def length(self, text: str) -> float:
        """Returns the width of a spelled text in pixels."""
        return sum(font.getlength(run) for font, run in self._runs(text) if font is not None)

    def write(self, draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill: str) -> None:
        """Writes a spelled text with its top left corner at `place`."""
        x, y = place
        for font, run in self._runs(text):
            if isinstance(font, ImageFont.FreeTypeFont):
                draw.text((x, y + self.ascent), run, fill=fill, font=font, anchor="ls")
                x += font.getlength(run)
            elif font is not None:
                draw.text((x, y), run, fill=fill, font=font)
                x += font.getlength(run)

    def wrapped(self, text: str, width: int, most: int = 5) -> list[str]:
        """Returns the first lines of a text, spelled; breaks words that are wider than a line."""
        lines: list[str] = [""]
        for word in self.spelled(text[:400]).split():
            longer = f"{lines[-1]} {word}".strip()
            if self.length(longer) <= width:
                lines[-1] = longer
                continue
            if lines[-1]:
                lines.append("")
            for letter in word:
                if lines[-1] and self.length(lines[-1] + letter) > width:
                    lines.append("")
                lines[-1] += letter
        if len(lines) <= most:
            return lines
        last = lines[most - 1]
        while last and self.length(f"{last} ...") > width:
            last = last[:-1].rstrip()
        return [*lines[: most - 1], f"{last} ..."]

    def _runs(self, text: str) -> Iterator[tuple[Font | None, str]]:
        """Yields runs of characters with their font, None if no font has them."""
        fonts: list[Font | None] = []
        for letter in text:
            follows = unicodedata.category(letter) in ("Mn", "Me", "Mc", "Cf") and bool(fonts)
            fonts.append(fonts[-1] if follows else _font_of(letter, self.size))
        for _, letters in groupby(range(len(text)), key=lambda k: id(fonts[k])):
            places = list(letters)
            yield fonts[places[0]], text[places[0] : places[-1] + 1]


def _without_lone_marks(run: str, font: Font) -> str:
    """Returns the run without accents that the font would show as boxes."""
    return "".join(letter for letter in run if unicodedata.category(letter) not in _MARKS or _has(font, letter))


def _in_words(run: str, font: Font) -> str:
    """Returns a replacement for characters without a font: letters without accents, else their names."""
    plain = "".join(
        "-" if unicodedata.category(letter) == "Pd" else letter for letter in unicodedata.normalize("NFKD", run)
    )
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    if all(_has(font, letter) for letter in plain):
        return plain
    # without accents, joiners and skin tones
    letters = [x for x in run if unicodedata.category(x) not in (*_MARKS, "Mc", "Cf", "Cc", "Cs", "Sk")]
    parts = []
    # a character newer than this Python has no name and the category Cn
    for symbol, group in groupby(letters, key=lambda letter: unicodedata.category(letter)[0] in "SPNC"):
        held = list(group)
        if symbol:
            parts += [f":{unicodedata.name(letter, f'U+{ord(letter):04X}').lower()}:" for letter in held]
        else:
            script = unicodedata.name(held[0], "unknown").split()[0]
            script = script if script == "CJK" else script.capitalize()
            parts.append(f"({len(held)} {script} character{'s' * (len(held) > 1)})")
    return " " + " ".join(parts) + " "


@cache
def _default(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _ascent(font: Font) -> int:
    return font.getmetrics()[0] if isinstance(font, ImageFont.FreeTypeFont) else 0


@cache
def _font_of(letter: str, size: int) -> Font | None:
    if letter.isascii() or letter.isspace() or _has(_default(size), letter):
        return _default(size)
    for path in system_fonts():
        font = _open(path, size)
        if font is not None and _has(font, letter):
            return font
    return None


@cache
def _open(path: Path, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(path, size)
    except (OSError, ValueError):  # a damaged file, or a bitmap font without this size
        return None


def _has(font: Font, letter: str) -> bool:
    """Returns False if the font shows the same glyph for the character as for one that does not exist."""
    try:
        glyph, missing = font.getmask(letter), font.getmask("\U0010fffe")
    except (OSError, ValueError, UnicodeEncodeError):
        return False
    return glyph.size[0] > 0 and (glyph.size != missing.size or bytes(glyph) != bytes(missing))  # pyright: ignore[reportArgumentType]  # a buffer, untyped


@cache
def system_fonts() -> tuple[Path, ...]:
    """Returns the font files of this machine; those that cover many scripts come first."""
    home = Path.home()
    folders = {
        "darwin": [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"],
        "win32": [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"],
    }.get(
        sys.platform,
        [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts", home / ".fonts"],
    )
    files = [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in (".ttf", ".otf", ".ttc")
    ]

    def rank(path: Path) -> int:
        name = path.name.lower()
        return next((k for k, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED))

    return tuple(sorted(files, key=rank)[:MOST_FONTS])
