"""From text features to pictures, behind one protocol. A new family is one class, one line in `SAMPLERS`."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from t2i.errors import InputError
from t2i.text import TextFeatures

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from t2i.images import ImageArray

# name -> its config and its tensors
Components = dict[str, tuple[dict[str, Any], Mapping[str, "Tensor"]]]


class Sampler(Protocol):
    """One family's way from text to pictures. A picture depends on its seed, its text and the knobs alone.

    Each class also has two constructors' halves:
        components_of(state, manifest, run) -> Components    what of a checkpoint draws; KeyError names what it lacks
        load(components, text: TextEncoder) -> Self     InputError or ValidationError when they do not fit
    """

    parts: tuple[str, ...]  # names of the components, each a folder of a saved pipeline

    @property
    def guidance(self) -> float:
        """What is drawn with where the caller says nothing."""
        ...

    def components(self) -> Components: ...

    def to(self, device: "torch.device") -> None: ...

    def tuned(self, settings: Mapping[str, Any]) -> Self:
        """The same with other settings of its family; InputError names an unknown one and those there are."""
        ...

    def settings(self) -> dict[str, Any]:
        """All settings of its family with their values."""
        ...

    def draw(
        self,
        text: TextFeatures,
        seeds: Sequence[int],
        truncation: float = 1.0,
        guidance: float = 1.0,
        on_step: Callable[[float], None] | None = None,
    ) -> "ImageArray":
        """One picture a row of `text`; `on_step` hears which share of them is done."""
        ...


@runtime_checkable
class NoiseSpace(Protocol):
    """A `Sampler` whose noises have a path between them."""

    def draw_between(
        self,
        text: TextFeatures,
        seeds: tuple[int, int],
        weights: Sequence[float],
        truncation: float = 1.0,
        guidance: float = 1.0,
    ) -> "ImageArray":
        """One picture a weight and row of `text`; weight 0 is `draw` with the first seed, 1 with the second."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """A `Sampler` that draws through a tokenizer, whose losses are the ceiling of its pictures."""

    def reconstruct(self, images_BHWC: "ImageArray") -> "ImageArray":
        """Pictures of the run's size through the tokenizer and back."""
        ...


@runtime_checkable
class Completes(Protocol):
    """A `Sampler` whose pictures are made of cells, some of which may be given."""

    cells: tuple[int, int]  # rows and columns

    def keeping(self, image_HWC: "ImageArray", redraw_hw: "NDArray[np.bool_]") -> Self:
        """The same, but all its pictures keep the cells of this one that are not redrawn, exactly.

        Args:
            image_HWC: a picture of the run's size.
            redraw_hw: a flag a cell.

        Raises:
            InputError: the order in which it draws does not allow these cells.
        """
        ...


# family -> "module:class"
SAMPLERS: dict[str, str] = {
    "cgan": "t2i.cgan.sampling:CganSampler",
    "prior": "t2i.prior.sampling:PriorSampler",
}


def sampler_class(family: object, where: Path) -> Any:
    """The `Sampler` of a family; InputError names `where` when there is none."""
    if family not in SAMPLERS:
        raise InputError(
            f"{where} holds a model of the family {str(family)[:40]!r}, which draws no pictures; families that do: "
            f"{', '.join(SAMPLERS)}"
        )
    module, _, name = SAMPLERS[str(family)].partition(":")
    return getattr(import_module(module), name)
