"""Drawings in other colours: "blue apple" from a red one, so that colours are learned apart from what has them.

A drawing has a colour where nearly all of its saturated pixels are of one hue. A tint turns that hue into another, and the
caption says so; a caption that is the name of another emoji, as "blue heart", is never made.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from t2i import seeding
from t2i.data.emoji.names import is_called
from t2i.images import ImageArray


class Ink(NamedTuple):
    """What a named colour is: hue in degrees, and how much of saturation and of brightness stays."""

    hue: float
    saturation: float
    value: float


INKS: Mapping[str, Ink] = {
    "red": Ink(355, 1.0, 0.92),
    "orange": Ink(27, 1.0, 1.0),
    "yellow": Ink(48, 0.95, 1.05),
    "green": Ink(125, 0.85, 0.8),
    "blue": Ink(212, 0.9, 0.98),
    "purple": Ink(272, 0.7, 0.9),
    "pink": Ink(330, 0.5, 1.05),
}
COLOUR_WORDS = frozenset((*INKS, "black", "white", "grey", "brown", "light", "dark"))
MIN_SATURATION, MIN_VALUE = 60, 45  # of 255: less of either is white, grey or black and stays
SPREAD, SHARE, COVER = (
    30,
    0.8,
    0.3,
)  # degrees about the mean hue, what is within of all, and of the drawn pixels at least
NEAR = 35  # degrees between a tint and the drawing's own hue at least
NONE = -1.0


def hue_of(image_HWC: ImageArray) -> float:
    """Returns the hue in degrees of a drawing that has one colour; -1 for others."""
    hue, saturation, value = _hsv(image_HWC)
    inked = (saturation >= MIN_SATURATION) & (value >= MIN_VALUE)
    drawn = (image_HWC.min(axis=2) < 245).sum()
    if inked.sum() < max(8, COVER * drawn):
        return NONE
    weight = saturation[inked] / 255
    angle = np.deg2rad(hue[inked])
    mean = float(np.rad2deg(np.arctan2((weight * np.sin(angle)).sum(), (weight * np.cos(angle)).sum())) % 360)
    near = np.abs(_turn(hue[inked] - mean)) <= SPREAD
    return mean if (weight * near).sum() >= SHARE * weight.sum() else NONE


def tint(image_HWC: ImageArray, hue: float, colour: str) -> Image.Image:
    """Returns a drawing of one hue in another colour; greys, and what is far from its hue, stay."""
    ink = INKS[colour]
    own, saturation, value = _hsv(image_HWC)
    off = _turn(own - hue)
    meant = (np.abs(off) <= 2 * SPREAD) & (saturation > 0)
    turned = np.where(meant, (ink.hue + 0.4 * off) % 360, own)
    saturation = np.where(meant, saturation * ink.saturation, saturation)
    value = np.where(meant & (saturation >= 25), value * ink.value, value)
    made = np.stack([turned * 255 / 360, saturation, value], axis=2).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(made, "HSV").convert("RGB")


def tints_of(key: str, hue: float, count: int) -> list[str]:
    """Returns up to `count` colours that the drawing of an emoji is not, the same in every style."""
    others = [name for name, ink in INKS.items() if abs(_turn(np.array(ink.hue - hue))) >= NEAR]
    order = np.argsort([seeding.key_of(f"{key}/{name}") for name in others])
    return [others[i] for i in order[:count]]


def tinted(captions: Sequence[str], colour: str) -> list[str]:
    """Returns captions that say another colour, as "blue apple" of "red apple"; none that is the name of an emoji."""
    made = []
    for caption in captions:
        plain = " ".join(word for word in caption.split() if word.lower() not in COLOUR_WORDS)
        text = f"{colour} {plain}"
        if plain and not is_called(text.partition(",")[0]):
            made.append(text)
    return list(dict.fromkeys(made))


def _hsv(image_HWC: ImageArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value to 255, float32 [H, W] each."""
    planes = np.asarray(Image.fromarray(image_HWC).convert("HSV")).astype(np.float32)
    return planes[..., 0] * 360 / 255, planes[..., 1], planes[..., 2]


def _turn(degrees: np.ndarray) -> np.ndarray:
    return (degrees + 180) % 360 - 180
