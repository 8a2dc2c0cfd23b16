"""The models that the page offers: found by name, loaded once, kept while they fit into memory."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from t2i.data import View, open_dataset, parse_address
from t2i.errors import InputError
from t2i.families import FAMILIES, Completes, NoiseSpace, family_of
from t2i.hardware import device
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.saved import DEFAULTS
from t2i.weights import DEFAULT, INDEX, shipped

DEPTH, MOST_RUNS = 3, 200  # folders below `runs/` that are searched, and runs that are listed
EXAMPLES = 5


@dataclass(frozen=True)
class Card:
    """What the page shows of one model.

    Attributes:
        knobs: settings that change its images, and their values where none is chosen.
        examples: captions of its own data that training did not see.
        no_inpainting: why it cannot fill in a mask; None: it can.
        between_noises: True where two noises have a path between them.
    """

    words: str
    knobs: dict[str, Any]
    examples: tuple[str, ...]
    no_inpainting: str | None
    between_noises: bool


@dataclass(frozen=True)
class WarmModel:
    """A model in memory; `stamp` tells whether the folder has changed since."""

    stamp: tuple[Any, ...]
    pipe: TextToImagePipeline
    card: Card
    size: int  # bytes of weights


class Models:
    """Models by name. Pages name them, and only names that are listed here are opened.

    Args:
        named: runs, saved pipelines or names of shipped models, which come first.
        below: the folder whose runs are listed too, found anew each time; None: no others, and no shipped ones.
        keep_bytes: weights that stay in memory; the last model stays whatever its size.
    """

    def __init__(self, named: Sequence[str], below: Path | None, keep_bytes: float) -> None:
        self._named, self._below, self._keep_bytes = list(named), below, keep_bytes
        self._loaded: OrderedDict[str, WarmModel] = OrderedDict()  # used longest ago first
        self._lock = RLock()

    def places(self) -> dict[str, str | Path]:
        """What is there now: name -> where it is."""
        ours = shipped()
        found: dict[str, str | Path] = {name: ours.get(name, name) for name in self._named}
        if self._below is not None:
            others = {DEFAULT: ours[DEFAULT], **ours} | {str(path): path for path in runs_below(self._below)}
            found |= {name: place for name, place in others.items() if name not in found}
        return found

    def open(self, name: Any) -> WarmModel:
        """The model, read again where its run has a newer checkpoint.

        Raises:
            InputError: it is not listed, or what is there is no model.
        """
        with self._lock:
            place = self.places().get(name) if isinstance(name, str) else None
            if place is None:
                raise InputError(f"there is no model {name!r:.60} on this page; reload it and choose another")
            stamp, loaded = _stamp(Path(place)), self._loaded.pop(name, None)
            if loaded is None or loaded.stamp != stamp:
                loaded = None  # its memory is free before the next one is read
                pipe = TextToImagePipeline.from_pretrained(place, device())
                loaded = WarmModel(stamp, pipe, card_of(pipe), _bytes(pipe))
            self._loaded[name] = loaded
            while len(self._loaded) > 1 and sum(one.size for one in self._loaded.values()) > self._keep_bytes:
                self._loaded.popitem(last=False)
            return loaded


def runs_below(folder: Path) -> list[Path]:
    """Runs with a checkpoint, and saved pipelines, of families that make images."""
    found = []
    for path in _folders(folder, DEPTH):
        if len(found) < MOST_RUNS and ((path / INDEX).is_file() or _makes_images(path)):
            found.append(path)
    return found


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    try:
        inside = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    for path in map(Path, inside):
        yield path
        if depth > 1 and not (path / "checkpoints").is_dir():
            yield from _folders(path, depth - 1)


def _makes_images(run: Path) -> bool:
    try:
        family = FAMILIES.get(family_of(run)) if any((run / "checkpoints").glob("step-*")) else None
    except (InputError, OSError):  # half written, or not ours: no model
        return False
    return family is not None and family.sampler is not None


def _stamp(place: Path) -> tuple[Any, ...]:
    checkpoints = tuple(sorted(path.name for path in (place / "checkpoints").glob("step-*")))
    files = [path.stat().st_mtime_ns for path in (place / INDEX, place / DEFAULTS) if path.is_file()]
    return (checkpoints, *files)


def _bytes(pipe: TextToImagePipeline) -> int:
    parts = pipe.sampler.components().values()
    return sum(tensor.numel() * tensor.element_size() for _, tensors in parts for tensor in tensors.values())


def card_of(pipe: TextToImagePipeline) -> Card:
    """Asks a pipeline what it can do."""
    config = pipe.manifest["config"]
    values = {"guidance": pipe.guidance_scale, "truncation": pipe.truncation, **pipe.sampler.settings()}
    knobs = {name: values[name] for name in FAMILIES[pipe.family].knobs}
    if config.get("order") == "raster":
        knobs.pop("steps", None)
    side, data = config["data"]["resolution"], str(config["data"]["address"])
    words = FAMILIES[pipe.family].words
    return Card(
        words=f"{words[0].upper()}{words[1:]}, {side} x {side} pixels, trained on {_last_part(data)} "
        f"for {pipe.manifest['step']:,} steps",
        knobs=knobs,
        examples=_held_out(data),
        no_inpainting=_why_no_inpainting(pipe, side),
        between_noises=isinstance(pipe.sampler, NoiseSpace),
    )


def _last_part(address: str) -> str:
    return Path(address.rpartition(":")[2].partition("?")[0]).name or address


def _why_no_inpainting(pipe: TextToImagePipeline, side: int) -> str | None:
    """The reason as the sampler gives it when it is asked to sample the first cell alone anew."""
    if not isinstance(pipe.sampler, Completes):
        return f"A {FAMILIES[pipe.family].words} cannot keep parts of an image. A prior trained with order=random can."
    first_hw = np.zeros(pipe.sampler.cells, bool)
    first_hw[0, 0] = True
    try:
        pipe.sampler.keeping(np.zeros((side, side, 3), np.uint8), first_hw)
    except InputError as error:
        return f"{str(error)[0].upper()}{str(error)[1:]}."
    return None


def _held_out(address: str) -> tuple[str, ...]:
    """Captions of the run's own val split; none where the data is not on this machine."""
    try:
        if parse_address(address).kind == "hub":
            return ()
        captions = open_dataset(address, "val", View(limit=EXAMPLES)).captions
        return tuple(captions[k][0] for k in range(min(EXAMPLES, len(captions))))
    except (InputError, OSError):
        return ()
