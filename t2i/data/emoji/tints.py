"""Tints drawings: a "blue apple" from a red one, so that models learn colours independently of objects.

A drawing has a colour if nearly all of its saturated pixels have one hue. A tint replaces that hue, and the caption names the new
colour; captions that are the name of another emoji, such as "blue heart", are excluded.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from t2i import seeding
from t2i.data.emoji.names import is_name
from t2i.images import ImageArray


class Ink(NamedTuple):
    """A named colour: hue in degrees, and factors of saturation and brightness."""

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
MIN_SATURATION, MIN_VALUE = 60, 45  # of 255; pixels below either count as white, grey or black
SPREAD = 30  # degrees from the mean hue that count as the same hue
SHARE = 0.8  # least share of the saturated pixels with that hue
COVER = 0.3  # least share of saturated pixels among those that are not background
NEAR = 35  # least difference in degrees between a tint and the drawing's hue
NONE = -1.0


def hue_of(image_HWC: ImageArray) -> float:
    """Returns the hue in degrees of a drawing with one colour, otherwise -1."""
    hue, saturation, value = _hsv(image_HWC)
    inked = (saturation >= MIN_SATURATION) & (value >= MIN_VALUE)
    foreground = (image_HWC.min(axis=2) < 245).sum()
    if inked.sum() < max(8, COVER * foreground):
        return NONE
    weight = saturation[inked] / 255
    angle = np.deg2rad(hue[inked])
    mean = float(np.rad2deg(np.arctan2((weight * np.sin(angle)).sum(), (weight * np.cos(angle)).sum())) % 360)
    near = np.abs(_turn(hue[inked] - mean)) <= SPREAD
    return mean if (weight * near).sum() >= SHARE * weight.sum() else NONE


def tint(image_HWC: ImageArray, hue: float, colour: str) -> Image.Image:
    """Returns a drawing of one hue in another colour; grey pixels and those of other hues are unchanged."""
    ink = INKS[colour]
    hues, saturation, value = _hsv(image_HWC)
    difference = _turn(hues - hue)
    replaced = (np.abs(difference) <= 2 * SPREAD) & (saturation > 0)
    hues = np.where(replaced, (ink.hue + 0.4 * difference) % 360, hues)
    saturation = np.where(replaced, saturation * ink.saturation, saturation)
    value = np.where(replaced & (saturation >= 25), value * ink.value, value)
    planes = np.stack([hues * 255 / 360, saturation, value], axis=2).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(planes, "HSV").convert("RGB")


def tints_of(key: str, hue: float, count: int) -> list[str]:
    """Returns up to `count` colours that a drawing does not have; their order is the same in every style."""
    others = [name for name, ink in INKS.items() if abs(_turn(np.array(ink.hue - hue))) >= NEAR]
    order = np.argsort([seeding.key_of(f"{key}/{name}") for name in others])
    return [others[i] for i in order[:count]]


def tinted(captions: Sequence[str], colour: str) -> list[str]:
    """Returns captions with another colour, e.g. "blue apple" for "red apple"; names of emoji are excluded."""
    result = []
    for caption in captions:
        plain = " ".join(word for word in caption.split() if word.lower() not in COLOUR_WORDS)
        text = f"{colour} {plain}"
        if plain and not is_name(text.partition(",")[0]):
            result.append(text)
    return list(dict.fromkeys(result))


def _hsv(image_HWC: ImageArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns hue in degrees, saturation and value from 0 to 255, each float32 [H, W]."""
    planes = np.asarray(Image.fromarray(image_HWC).convert("HSV")).astype(np.float32)
    return planes[..., 0] * 360 / 255, planes[..., 1], planes[..., 2]


def _turn(degrees: np.ndarray) -> np.ndarray:
    """Maps angles to [-180, 180)."""
    return (degrees + 180) % 360 - 180
