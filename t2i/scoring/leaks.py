"""Finds images and captions that a run was trained on before it is scored on them.

docs/leaks.md has the rule, and its detection rates on planted leaks.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2i.data.phash import near_duplicates, signatures
from t2i.data.record import Record, caption_hashes, id_hashes, is_rendered, join, pixel_hashes, read_record
from t2i.errors import InputError
from t2i.extractors import address_of
from t2i.names import verb
from t2i.scoring.images.collection import Images
from t2i.trained import RECORD

NAMED = 3  # findings in a message
CHANCE = 1e-3  # equal captions are a leak if their number has a smaller probability than this by chance


@dataclass(frozen=True)
class Overlap:
    """Held-out images and captions that a model was trained on; images by id."""

    images: list[str]
    captions: list[str]
    similar: list[str]  # images that resemble a training image but are not equal
    by_chance: bool  # held-out captions equal training captions no more often than these equal each other

    @property
    def leaks(self) -> bool:
        return bool(self.images or (self.captions and not self.by_chance))


def find(record: Record, captions: Sequence[str], images: Images | None) -> Overlap:
    """Looks up captions and images in the record of a model's training data.

    Args:
        images: resized as in training; scenes of the embedded data are compared by id and not rendered.
    """
    known = np.isin(caption_hashes(captions), record.captions)
    known_captions = [captions[k] for k in np.flatnonzero(known).tolist()]
    by_chance = _by_chance(len(known_captions), len(captions), record.shared)
    if images is None:
        return Overlap([], known_captions, [], by_chance)
    ids = images.ids
    similar: list[str] = []
    if is_rendered(images.name):
        same = np.isin(id_hashes(ids), record.pixels)
    else:
        parts = [(pixel_hashes(chunk), signatures(np.stack(chunk))) for chunk in images.chunks(range(len(images)))]
        same = np.isin(np.concatenate([pixels for pixels, _ in parts]), record.pixels)
        near = near_duplicates(join([signature for _, signature in parts]), record.looks)
        similar = [str(ids[row]) for row in near[:, 0].tolist() if not same[row]]
    return Overlap([ids[k] for k in np.flatnonzero(same).tolist()], known_captions, similar, by_chance)


def _by_chance(count: int, total: int, rate: float) -> bool:
    """Returns True if chance explains `count` or more coincidences in `total` trials of probability `rate`."""
    from scipy.stats import binom

    return count > 0 and float(binom.sf(count - 1, total, rate)) >= CHANCE


def refuse_leaks(place: Path, captioned: Images, images: Images | None, allow: bool) -> str | None:
    """Refuses captions and images that a run was trained on, and warns of images that resemble training images.

    Args:
        place: the run, or another folder with its record.
        captioned: the images whose captions are sampled.
        images: the same images, resized as in training; None: only the captions are checked.
        allow: warns of a leak instead of refusing it.

    Returns:
        The entry of the scores' protocol; None: there is no leak.

    Raises:
        InputError: there is a leak and `allow` is False.
    """
    record = read_record(place / RECORD)
    if record is None:
        warnings.warn(
            f"{place} has no record of its training data ({RECORD} is missing), so it is unknown if these are held out",
            stacklevel=3,
        )
        return None
    overlap, of = find(record, captioned.captions or [], images), f"of {len(captioned):,}"
    _warn_of_doubt(overlap, record, of)
    if not overlap.leaks:
        return None
    kinds = {"images": overlap.images, "captions": [] if overlap.by_chance else overlap.captions}
    listed = " and ".join(f"{len(names):,} {of} {kind} ({_some(names)})" for kind, names in kinds.items() if names)
    if not allow:
        raise InputError(
            f"{place} was trained on {listed} of {captioned.name}, split {captioned.split}; name held-out data, or score it with "
            "--allow-leak, which marks the scores"
        )
    warnings.warn(f"{place} was trained on {listed}: these scores are marked", stacklevel=3)
    return "trained on " + " and ".join(f"{len(names)} {of} {kind}" for kind, names in kinds.items() if names)


def refuse_leaks_of_encoder(by: str | None, images: Images, allow: bool) -> str | None:
    """Calls `refuse_leaks` for the run of `t2i train align` that encodes images, if `by` names one.

    Args:
        by: address of an encoder. None: the embedded scorer; it was trained on all combinations of the rendered shapes, so no
            image of these is held out from it.
        images: images with captions, of the encoder's side.
    """
    kind, _, path = address_of(by).partition(":")
    return refuse_leaks(Path(path), images, images, allow) if kind == "align" else None


def _warn_of_doubt(overlap: Overlap, record: Record, of: str) -> None:
    """Warns of similar images and of equal captions that chance explains."""
    if overlap.similar:
        warnings.warn(
            f"{len(overlap.similar):,} {of} images {verb(len(overlap.similar), 'resembles', 'resemble')} training images: "
            f"{_some(overlap.similar)}; check if they are copies",
            stacklevel=4,
        )
    if overlap.captions and overlap.by_chance:
        warnings.warn(
            f"{len(overlap.captions):,} {of} captions {verb(len(overlap.captions), 'is also a caption', 'are also captions')} of "
            f"training images, no more than training images share with each other "
            f"({record.shared:.1%}): {_some(overlap.captions)}",
            stacklevel=4,
        )


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(repr(name[:60]) for name in names[:NAMED]) + more
