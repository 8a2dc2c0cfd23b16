"""The embedded data (`shapes-1`, `shapes-2`, `shapes-3`) as a `Dataset`."""

import hashlib
from collections.abc import Callable, Sequence
from copy import copy
from typing import Self

import numpy as np

from t2i.data import View
from t2i.data.questions import Question
from t2i.data.shapes.drawing import render
from t2i.data.shapes.questions import SceneQuestions
from t2i.data.shapes.scenes import draw_scenes
from t2i.data.shapes.vocabulary import BACKGROUNDS, COLORS, LAYOUTS, SHAPES, SIZES
from t2i.data.tools.classes import Values
from t2i.errors import InputError
from t2i.images import Fit, ImageArray

DRAWING = 1  # raised when the pixels of the same scene change, so that cached features and codes are not used for them
DEFAULT_SIZE = {"train": 50_000, "val": 5_000, "heldout": 5_000, "all": 50_000}


class ShapesDataset:
    """One split of `shapes-<level>`; images are rendered when they are read, so they take no memory."""

    def __init__(self, level: int, split: str, view: View) -> None:
        from t2i.data.shapes.captions import describe

        self.address, self.split, self.resolution = f"shapes-{level}", split, view.resolution
        size = view.limit or DEFAULT_SIZE[split]
        self.scenes = draw_scenes(level, split, np.arange(size))
        self.captions = [[caption] for caption in describe(self.scenes, np.arange(size), self.address, split)]
        self.ids = [f"{self.address}/{split}/{i:06d}" for i in range(size)]
        self.broken: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.ids)

    def images(self, indices: Sequence[int]) -> ImageArray:
        return render(self.scenes[np.asarray(indices, dtype=np.int64)], self.resolution)

    def at(self, resolution: int | None = None, fit: Fit | None = None) -> Self:
        """Returns the same scenes at another resolution; `fit` has no effect on rendered images."""
        other = copy(self)
        other.resolution = resolution or self.resolution
        return other

    @property
    def questions(self) -> Sequence[Sequence[Question]]:
        """Questions with answers about each image, from the facts of its scene."""
        return SceneQuestions(self.scenes, self.ids)

    @property
    def labels(self) -> dict[str, Callable[[], Values]]:
        """Facts of the scenes; with several objects, an image has several shapes, colours and sizes."""
        scenes = self.scenes
        slots = {
            "shape": (SHAPES, scenes.shape_NM),
            "colour": (COLORS, scenes.color_NM),
            "size": (SIZES, scenes.size_NM),
        }
        facts: dict[str, Callable[[], Values]] = {
            name: lambda words=words, numbers_NM=numbers_NM: [
                tuple({words[k]: None for k in numbers if k >= 0}) for numbers in numbers_NM.tolist()
            ]
            for name, (words, numbers_NM) in slots.items()
        }
        counts = (scenes.shape_NM >= 0).sum(axis=1).tolist()
        facts["count"] = lambda: [(str(count),) for count in counts]
        facts["background"] = lambda: [(BACKGROUNDS[k],) for k in scenes.background_N.tolist()]
        facts["layout"] = lambda: [(LAYOUTS[k],) for k in scenes.layout_N.tolist()]
        return facts

    def contents(self, lasting: bool = False) -> Sequence[str]:
        """Returns the version of the rendering for each scene, whose id determines the rest."""
        return [f"drawing {DRAWING}"] * len(self)

    def digest(self) -> str:
        return self._hash(*self.ids)

    def fingerprint(self) -> str:
        return self._hash(self.address, self.split, str(len(self)), str(self.resolution))

    def _hash(self, *parts: str) -> str:
        captions = (caption for (caption,) in self.captions)
        return hashlib.sha256("\n".join([f"drawing {DRAWING}", *parts, *captions]).encode()).hexdigest()


def open_shapes(level: str, split: str, view: View) -> ShapesDataset:
    """Opens one split of `shapes-<level>`; `test` is another name for `heldout`."""
    if level not in ("1", "2", "3"):
        raise InputError(f"data 'shapes-{level}' does not exist: choose shapes-1, shapes-2 or shapes-3")
    split = "heldout" if split == "test" else split
    if split not in DEFAULT_SIZE:
        raise InputError(f"shapes-{level} has no split {split!r}: choose one of {', '.join(DEFAULT_SIZE)}")
    if not 16 <= view.resolution <= 1024:
        raise InputError(
            f"shapes are rendered at 16 to 1024 pixels, not {view.resolution}; name a size or data.resolution within that"
        )
    return ShapesDataset(int(level), split, view)
