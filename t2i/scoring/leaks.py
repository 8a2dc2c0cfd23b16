"""Held-out means held-out: images and captions that a run was trained on are found before it is scored on them.

Select on `val`, report `test` once. docs/leaks.md has the rule and how well it finds what was planted.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2i.data.phash import near_duplicates, signatures
from t2i.errors import InputError
from t2i.scoring.images.collection import Images
from t2i.training.trained_on import (
    RECORD,
    Record,
    caption_hashes,
    id_hashes,
    is_rendered,
    join,
    pixel_hashes,
    read_record,
)

NAMED = 3  # findings in a message
CHANCE = 1e-3  # captions that coincide more often than with this probability by chance are a leak


@dataclass(frozen=True)
class Found:
    """The part of N images that a model was trained on, by id; `captions` by their words."""

    images: list[str]
    captions: list[str]
    alike: list[str]  # resemble a training image and are not the same
    by_chance: bool  # captions coincide no more often than those of training images among each other

    @property
    def leaks(self) -> bool:
        return bool(self.images or (self.captions and not self.by_chance))


def find(record: Record, captions: Sequence[str], images: Images | None) -> Found:
    """Looks captions and images up in the record of a model's training data.

    Args:
        images: brought to size as in training; scenes of the embedded data are not rendered for this.
    """
    known = np.isin(caption_hashes(captions), record.captions)
    words = [captions[k] for k in np.flatnonzero(known).tolist()]
    by_chance = _by_chance(len(words), len(captions), record.shared)
    if images is None:
        return Found([], words, [], by_chance)
    ids = images.ids
    alike: list[str] = []
    if is_rendered(images.name):
        same = np.isin(id_hashes(ids), record.pixels)
    else:
        parts = [(pixel_hashes(chunk), signatures(np.stack(chunk))) for chunk in images.chunks(range(len(images)))]
        same = np.isin(np.concatenate([pixels for pixels, _ in parts]), record.pixels)
        near = near_duplicates(join([seen for _, seen in parts]), record.looks)
        alike = [str(ids[row]) for row in near[:, 0].tolist() if not same[row]]
    return Found([ids[k] for k in np.flatnonzero(same).tolist()], words, alike, by_chance)


def _by_chance(count: int, total: int, rate: float) -> bool:
    """True where chance explains `count` or more of `total` coincidences, each of probability `rate`."""
    from scipy.stats import binom

    return count > 0 and float(binom.sf(count - 1, total, rate)) >= CHANCE


def refuse_leaks(place: Path, asked: Images, images: Images | None, allow: bool) -> str | None:
    """Refuses held-out captions and images that a run was trained on, and warns of images that resemble training images.

    Args:
        place: the run, or another folder with its record.
        asked: the images whose captions are sampled.
        images: the same, brought to size as in training; None: these are captions alone.
        allow: go on all the same.

    Returns:
        the entry of the scores' protocol; None: nothing was found.

    Raises:
        InputError: there are some, and they are not allowed.
    """
    record = read_record(place / RECORD)
    if record is None:
        warnings.warn(
            f"{place} has no record of its training data ({RECORD} is missing), so nothing shows that these are held out",
            stacklevel=3,
        )
        return None
    found, of = find(record, asked.captions or [], images), f"of {len(asked):,}"
    _warn_of_doubt(found, record, of)
    if not found.leaks:
        return None
    told = {"images": found.images, "captions": [] if found.by_chance else found.captions}
    words = " and ".join(f"{len(names):,} {of} {what} ({_some(names)})" for what, names in told.items() if names)
    if not allow:
        raise InputError(
            f"{place} was trained on {words} of {asked.name}, split {asked.split}; name what it has not seen, or "
            "score all the same with --allow-leak, which marks the scores"
        )
    warnings.warn(f"{place} was trained on {words}: these scores are marked", stacklevel=3)
    return "trained on " + " and ".join(f"{len(names)} {of} {what}" for what, names in told.items() if names)


def _warn_of_doubt(found: Found, record: Record, of: str) -> None:
    """Warns of likenesses and coincidences that are no leak by themselves."""
    if found.alike:
        warnings.warn(
            f"{len(found.alike):,} {of} images resemble training images: {_some(found.alike)}; check whether they are copies",
            stacklevel=4,
        )
    if found.captions and found.by_chance:
        warnings.warn(
            f"{len(found.captions):,} {of} captions are those of training images too, no more than training images share "
            f"among each other ({record.shared:.1%}): {_some(found.captions)}",
            stacklevel=4,
        )


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(repr(name[:60]) for name in names[:NAMED]) + more
