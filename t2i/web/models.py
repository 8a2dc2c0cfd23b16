"""Finds the models that the page offers, loads each once, and keeps them while they fit into memory."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from t2i.data import View, open_dataset, parse_address
from t2i.errors import InputError
from t2i.families import FAMILIES, Completes, NoiseSpace, family_of
from t2i.hardware import device
from t2i.names import counted
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.saved import DEFAULTS
from t2i.weights import DEFAULT, INDEX, shipped

DEPTH, MOST_RUNS = 3, 200  # folders below `runs/` that are searched, and runs that are listed
EXAMPLES = 5


@dataclass(frozen=True)
class Card:
    """Facts about a model for the page.

    Attributes:
        knobs: settings of sampling and their defaults.
        examples: held-out captions of its data.
        no_inpainting: the reason why it cannot inpaint; None: it can.
        between_noises: True if it can interpolate between two noises.
    """

    words: str
    knobs: dict[str, Any]
    examples: tuple[str, ...]
    no_inpainting: str | None
    between_noises: bool


@dataclass(frozen=True)
class WarmModel:
    """A model in memory; `stamp` changes when its folder does."""

    stamp: tuple[Any, ...]
    pipe: TextToImagePipeline
    card: Card
    size: int  # bytes of weights


class Models:
    """Models by name. Browsers send names, and only listed names are opened.

    Args:
        named: runs, saved pipelines or names of shipped models, which are listed first.
        below: a folder whose runs are listed too, along with the shipped models; None: only those in `named`.
        keep_bytes: limit of weights in memory; the last used model stays in any case.
    """

    def __init__(self, named: Sequence[str], below: Path | None, keep_bytes: float) -> None:
        self._named, self._below, self._keep_bytes = list(named), below, keep_bytes
        self._loaded: OrderedDict[str, WarmModel] = OrderedDict()  # least recently used first
        self._lock = RLock()

    def places(self) -> dict[str, str | Path]:
        """Returns the place of each model, by name, with the runs that exist now."""
        models = shipped()
        places: dict[str, str | Path] = {name: models.get(name, name) for name in self._named}
        if self._below is not None:
            others = {DEFAULT: models[DEFAULT], **models} | {str(path): path for path in runs_below(self._below)}
            places |= {name: place for name, place in others.items() if name not in places}
        return places

    def open(self, name: Any) -> WarmModel:
        """Returns a model; loads it if it is not in memory or its run has a newer checkpoint.

        Raises:
            InputError: the name is not listed, or its folder holds no model.
        """
        with self._lock:
            place = self.places().get(name) if isinstance(name, str) else None
            if place is None:
                raise InputError(f"there is no model {name!r:.60} on this page; reload it and choose another")
            stamp, loaded = _stamp(Path(place)), self._loaded.pop(name, None)
            if loaded is None or loaded.stamp != stamp:
                loaded = None  # frees its memory before the next one is loaded
                pipe = TextToImagePipeline.from_pretrained(place, device())
                loaded = WarmModel(stamp, pipe, card_of(pipe), _bytes(pipe))
            self._loaded[name] = loaded
            while len(self._loaded) > 1 and sum(one.size for one in self._loaded.values()) > self._keep_bytes:
                self._loaded.popitem(last=False)
            return loaded


def runs_below(folder: Path) -> list[Path]:
    """Returns runs with a checkpoint, and saved pipelines, of families that make images."""
    paths = (path for path in _folders(folder, DEPTH) if (path / INDEX).is_file() or _makes_images(path))
    return list(islice(paths, MOST_RUNS))


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
    except (InputError, OSError):  # an incomplete or foreign folder
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
    """Returns the facts about a pipeline."""
    config = pipe.manifest["config"]
    values = {"guidance": pipe.guidance_scale, "truncation": pipe.truncation, **pipe.sampler.settings()}
    knobs = {name: values[name] for name in FAMILIES[pipe.family].knobs}
    if config.get("order") == "raster":
        knobs.pop("steps", None)
    side, data = config["data"]["resolution"], str(config["data"]["address"])
    words = FAMILIES[pipe.family].words
    return Card(
        words=f"{words[0].upper()}{words[1:]}, {side} x {side} pixels, trained on {_last_part(data)} "
        f"for {counted(pipe.manifest['step'], 'step')}",
        knobs=knobs,
        examples=_held_out(data),
        no_inpainting=_why_no_inpainting(pipe, side),
        between_noises=isinstance(pipe.sampler, NoiseSpace),
    )


def _last_part(address: str) -> str:
    return Path(address.rpartition(":")[2].partition("?")[0]).name or address


def _why_no_inpainting(pipe: TextToImagePipeline, side: int) -> str | None:
    """Returns the sampler's reason for refusing to resample only the first cell, or None if it does not."""
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
    """Returns captions of the run's val split; none if the data is not on this machine."""
    try:
        if parse_address(address).kind == "hub":
            return ()
        captions = open_dataset(address, "val", View(limit=EXAMPLES)).captions
        return tuple(captions[k][0] for k in range(min(EXAMPLES, len(captions))))
    except (InputError, OSError):
        return ()
