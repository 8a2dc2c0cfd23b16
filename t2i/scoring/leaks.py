"""Held-out means held-out: pictures and captions that a run was trained on are found before it is scored on them.

Select on `val`, report `test` once. docs/leaks.md has the rule and how well it finds what was planted.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2i.data.phash import near_duplicates, signatures
from t2i.errors import InputError
from t2i.scoring.images.collection import Pictures
from t2i.training.trained_on import RECORD, Record, caption_hashes, id_hashes, is_drawn, join, pixel_hashes, read_record

NAMED = 3  # of what was found, in a message
CHANCE = 1e-3  # captions that coincide more often than with this probability by chance are a leak


@dataclass(frozen=True)
class Found:
    """What of N pictures a model was trained on, by id; `captions` by their words."""

    pictures: list[str]
    captions: list[str]
    alike: list[str]  # look like a training picture and are not the same
    by_chance: bool  # captions coincide no more often than those of training pictures among each other

    @property
    def leaks(self) -> bool:
        return bool(self.pictures or (self.captions and not self.by_chance))


def find(record: Record, captions: Sequence[str], pictures: Pictures | None) -> Found:
    """Looks captions and pictures up in what a model was trained on.

    Args:
        pictures: brought to size as in training; drawn scenes are not drawn for this.
    """
    known = np.isin(caption_hashes(captions), record.captions)
    words = [captions[k] for k in np.flatnonzero(known).tolist()]
    by_chance = _by_chance(len(words), len(captions), record.shared)
    if pictures is None:
        return Found([], words, [], by_chance)
    ids = pictures.ids
    alike: list[str] = []
    if is_drawn(pictures.name):
        same = np.isin(id_hashes(ids), record.pixels)
    else:
        parts = [(pixel_hashes(chunk), signatures(np.stack(chunk))) for chunk in pictures.chunks(range(len(pictures)))]
        same = np.isin(np.concatenate([pixels for pixels, _ in parts]), record.pixels)
        near = near_duplicates(join([seen for _, seen in parts]), record.looks)
        alike = [str(ids[row]) for row in near[:, 0].tolist() if not same[row]]
    return Found([ids[k] for k in np.flatnonzero(same).tolist()], words, alike, by_chance)


def _by_chance(count: int, total: int, rate: float) -> bool:
    """Whether `count` or more of `total` captions coincide by chance, where each does with probability `rate`."""
    from scipy.stats import binom

    return count > 0 and float(binom.sf(count - 1, total, rate)) >= CHANCE


def refuse_leaks(place: Path, asked: Pictures, pictures: Pictures | None, allow: bool) -> str | None:
    """Refuses held-out captions and pictures that a run was trained on, and warns of pictures that look like it.

    Args:
        place: the run, or what else holds its record.
        asked: whose captions are drawn.
        pictures: the same, brought to size as in training; None: these are captions alone.
        allow: go on all the same.

    Returns:
        what the protocol of the scores says of it; None: nothing was found.

    Raises:
        InputError: there are some, and they are not allowed.
    """
    record = read_record(place / RECORD)
    if record is None:
        warnings.warn(
            f"{place} does not tell what it was trained on ({RECORD} is missing), so nothing says that these are held out",
            stacklevel=3,
        )
        return None
    found = find(record, asked.captions or [], pictures)
    of = f"of {len(asked):,}"
    if found.alike:
        warnings.warn(
            f"{len(found.alike):,} {of} pictures look like training pictures: {_some(found.alike)}; look whether they are "
            "copies",
            stacklevel=3,
        )
    if found.captions and found.by_chance:
        warnings.warn(
            f"{len(found.captions):,} {of} captions are those of training pictures too, no more than training pictures "
            f"share among each other ({record.shared:.1%}): {_some(found.captions)}",
            stacklevel=3,
        )
    if not found.leaks:
        return None
    told = {"pictures": found.pictures, "captions": [] if found.by_chance else found.captions}
    words = " and ".join(f"{len(names):,} {of} {what} ({_some(names)})" for what, names in told.items() if names)
    if not allow:
        raise InputError(
            f"{place} was trained on {words} of {asked.name}, split {asked.split}; name what it has not seen, or "
            "score all the same with --allow-leak, which marks the scores"
        )
    warnings.warn(f"{place} was trained on {words}: these scores are marked", stacklevel=3)
    return "trained on " + " and ".join(f"{len(names)} {of} {what}" for what, names in told.items() if names)


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(repr(name[:60]) for name in names[:NAMED]) + more
