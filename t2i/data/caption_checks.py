"""Checks if mirroring, random crops or changes of colour may contradict captions."""

import re
import warnings
from collections.abc import Iterable, Sequence

from t2i.data import Augmentation, Dataset
from t2i.data.augment import COLOURS

_SIDES = re.compile(
    r"\b(?:left|right|leftmost|rightmost|leftward|rightward|(?:anti|counter)?-?clockwise)s?\b", re.IGNORECASE
)
_PLACES = re.compile(r"\b(?:left|right|top|bottom|upper|lower|corner|edge|above|below|background)\b", re.IGNORECASE)
_COLOURS = re.compile(
    r"\b(?:red|orange|yellow|green|cyan|blue|purple|pink|brown|black|white|gr[ea]y|golden|silver)\b", re.IGNORECASE
)


def may_flip(configured: bool, dataset: Dataset) -> bool:
    """Returns True if mirroring is configured and no caption mentions left or right (in English); warns if one does."""
    caption = first_caption(_SIDES, dataset) if configured else None
    if caption is not None:
        warnings.warn(
            f"flip is off: captions of {dataset.address} mention left or right, e.g. {caption[:80]!r}; a mirrored image "
            "would contradict them",
            stacklevel=2,
        )
    return configured and caption is None


def warn_of_crops(fit: str, dataset: Dataset) -> None:
    """Warns if images are cropped at random although captions mention positions."""
    caption = first_caption(_PLACES, dataset) if fit == "random" else None
    if caption is not None:
        warnings.warn(
            f"data.fit=random may cut off what captions of {dataset.address} mention, e.g. {caption[:80]!r}; "
            "data.fit=pad keeps the whole image, and center the same part each time",
            stacklevel=2,
        )


def first_caption(pattern: re.Pattern[str], dataset: Dataset) -> str | None:
    """Returns the first caption that matches `pattern`."""
    captions: Iterable[str] = (caption for own in dataset.captions for caption in own)
    return next((caption for caption in captions if pattern.search(caption)), None)


def warn_of_colors(names: Sequence[Augmentation], dataset: Dataset) -> None:
    """Warns if colours are changed although captions name them."""
    changing = [name for name in names if name in COLOURS]
    caption = first_caption(_COLOURS, dataset) if changing else None
    if caption is not None:
        warnings.warn(
            f"data.augment {', '.join(changing)} changes the colours that captions of {dataset.address} name, e.g. "
            f"{caption[:80]!r}",
            stacklevel=2,
        )
