"""Labels in any script: no character becomes a box."""

import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageDraw

from t2i import fonts, images
from t2i.fonts import Pen

# scripts, accents, punctuation, emoji alone, joined and with a skin tone, right to left, outside the first plane
CAPTIONS = [
    "a small red circle", "café, naïve, Übergröße", "красный круг", "κόκκινος κύκλος", "小さい赤い円", "一个红色的圆",
    "빨간 원", "دائرة حمراء", "עיגול אדום", "लाल वृत्त", "วงกลมสีแดง", "🐱 on 🚲", "👩‍👩‍👧", "👍🏽", "“quoted” — and… →", "𝒳𓀀",
    "x\u0302 q\u0301\u0323 e\u0301",
]  # fmt: skip


def shown(pen: Pen, text: str) -> np.ndarray:
    canvas = Image.new("RGB", (400, 20), "white")
    pen.write(ImageDraw.Draw(canvas), (0, 0), text, "black")
    return np.asarray(canvas)


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine without fonts."""
    fonts._font_of.cache_clear()
    monkeypatch.setattr(fonts, "system_fonts", lambda: ())
    yield
    fonts._font_of.cache_clear()


@pytest.mark.parametrize("caption", CAPTIONS)
def test_every_character_is_there_or_told_in_words(caption):
    pen = Pen(11)
    text = pen.spelled(caption)
    assert all(font is not None for font, _ in pen._runs(text))
    assert shown(pen, text).std() > 10 and 0 < pen.length(text) < 1000


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("a small red circle", "a small red circle"),
        ("🐱 on a mat", ":cat face: on a mat"),
        ("a 小猫 here", "a (2 CJK characters) here"),
        ("小さい円", "(4 CJK characters)"),
        ("красный круг", "(7 Cyrillic characters) (4 Cyrillic characters)"),
        ("👍🏽", ":thumbs up sign:"),
        ("👩‍👧", ":woman: :girl:"),
        ("دائرة", "(5 Arabic characters)"),
        ("→", ":rightwards arrow:"),
        ("\ue000 \U000f0000", ":u+e000: :u+f0000:"),
        ("x\u0302 q\u0301", "x q"),
        ("caf\u00e9 — na\u00efve", "cafe - naive"),
        ("\u200b", ""),
    ],
)
def test_without_fonts_it_says_what_is_there(no_fonts, caption, told):
    assert unicodedata.is_normalized("NFC", caption)
    assert Pen(11).spelled(caption) == told


def test_words_wider_than_a_line_are_cut():
    pen = Pen(11)
    for text in ("x" * 300, "円" * 90, "a " + "y" * 60):
        lines = pen.wrapped(text, 128)
        assert 1 < len(lines) <= 5 and all(pen.length(line) <= 128 for line in lines)
        assert lines[-1].endswith("...") == (len(text) > 70)
    assert pen.wrapped("", 128) == [""]


def test_a_grid_of_plain_captions_is_as_before():
    image = np.zeros((32, 32, 3), np.uint8)
    sheet = images.grid([image] * 2, ["a small red circle above a large blue square", "x"])
    assert sheet.size == (2 * 134 + 6, 6 + 128 + 14 * 2 + 12)
    assert np.asarray(sheet)[140:, 6:134].min() < 100
