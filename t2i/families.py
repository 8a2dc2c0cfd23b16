"""From text features to pictures, behind one protocol. A new family is one class, one line in `SAMPLERS`."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from pydantic import ValidationError

from t2i.config.explain import ConfigError
from t2i.config.load import read_tree
from t2i.config.section import Section
from t2i.errors import InputError
from t2i.names import nearest
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


# family -> "module:class" of its config, in a file that imports no torch. A new family is one line here.
FAMILIES: dict[str, str] = {
    "cgan": "t2i.cgan.config:Config",
    "align": "t2i.align.config:Config",
    "prior": "t2i.prior.config:Config",
    "vqvae": "t2i.vqvae.config:Config",
}


def config_class(family: str) -> type[Section]:
    """The config model of one family; InputError names the nearest family."""
    if family not in FAMILIES:
        raise InputError(f"family {family!r} is unknown{nearest(family, FAMILIES)}; known: {', '.join(FAMILIES)}")
    module, _, attribute = FAMILIES[family].partition(":")
    return getattr(import_module(module), attribute)


def family_of(source: Path | str) -> str:
    """The `family:` that a config file, run or shipped config names."""
    tree, _, problems = read_tree(source)
    if problems:
        raise ConfigError(problems)
    if not isinstance(tree.get("family"), str):
        raise ConfigError([f"family: missing in {source}; add a line `family: {' | '.join(FAMILIES)}`"])
    return tree["family"]


CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ImageTokenizer(Protocol):
    """A frozen tokenizer: tokens of a picture depend on that picture alone, and a picture on its tokens alone.

    Each class also has two constructors' halves:
        components_of(state, manifest) -> Components    what of a checkpoint codes pictures; KeyError names what it lacks
        load(components) -> Self                        InputError or ValidationError when they do not fit
    """

    parts: tuple[str, ...]  # names of the components, each a folder of a saved pipeline
    resolution: int  # pixels a side
    grid: int  # tokens a side; L = grid * grid, row by row
    codebooks: int  # Q
    codebook_size: int  # K

    def encode(self, images_BHWC: "ImageArray") -> "Tensor":
        """indices_BLQ, int64 in [0, K) on the CPU, of uint8 pictures [B, resolution, resolution, 3]."""
        ...

    def decode(self, indices_BLQ: "Tensor") -> "ImageArray":
        """uint8 [B, resolution, resolution, 3]."""
        ...

    def digest(self) -> str:
        """sha256 over all that decides tokens: every weight and buffer, and the config of the networks."""
        ...

    def components(self) -> Components: ...

    def to(self, device: "torch.device") -> None: ...


# family -> "module:class"
TOKENIZERS: dict[str, str] = {"vqvae": "t2i.vqvae.frozen:FrozenTokenizer"}


def tokenizer_class(family: object, where: Path) -> Any:
    """The `ImageTokenizer` of a family; InputError names `where` when there is none."""
    if family not in TOKENIZERS:
        raise InputError(
            f"{where} holds a model of the family {str(family)[:40]!r}, which is no image tokenizer; train one: "
            f"t2i train {next(iter(TOKENIZERS))}"
        )
    module, _, name = TOKENIZERS[str(family)].partition(":")
    return getattr(import_module(module), name)


def load_tokenizer(path: Path) -> ImageTokenizer:
    """Reads a run of `t2i train vqvae` (its newest intact checkpoint), or a component that a pipeline saved.

    Raises:
        InputError: `path` is neither, is of another family, or is damaged.
    """
    from safetensors import SafetensorError

    path = Path(path)
    try:
        return _read_component(path) if (path / CONFIG).is_file() else _read_run(path)
    except (ValidationError, KeyError, ValueError, SafetensorError, OSError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(f"the tokenizer at {path} is damaged ({reason}); train it again: t2i train vqvae") from error


def save_tokenizer(tokenizer: ImageTokenizer, folder: Path) -> None:
    """Writes the folder that `load_tokenizer` reads, whole or not at all."""
    from safetensors.torch import save_file

    from t2i.files import new_folder

    ((values, tensors),) = tokenizer.components().values()
    with new_folder(folder) as partial:
        (partial / CONFIG).write_text(json.dumps(values, indent=1) + "\n")
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial / WEIGHTS)


def _read_component(folder: Path) -> ImageTokenizer:
    from safetensors.torch import load_file

    values = json.loads((folder / CONFIG).read_text())
    family = values.get("family") if isinstance(values, dict) else None
    cls = tokenizer_class(family, folder)
    (part,) = cls.parts
    return cls.load({part: (values, load_file(folder / WEIGHTS))})


def _read_run(run: Path) -> ImageTokenizer:
    from t2i import checkpoint

    root = run / "checkpoints"
    if not root.is_dir():
        what = "does not exist" if not run.exists() else f"is no tokenizer: it holds neither checkpoints nor {CONFIG}"
        raise InputError(f"{run} {what}; train one: t2i train vqvae --run-dir {run}")
    with warnings.catch_warnings(record=True) as skipped:
        warnings.simplefilter("always")
        newest = checkpoint.latest(root)
    if newest is None:
        why = f"none is intact: {skipped[0].message}" if skipped else "there is none yet"
        raise InputError(f"{run} has no checkpoint to read, {why}; run `t2i train vqvae --run-dir {run}` to its end")
    for warning in skipped:
        warnings.warn(warning.message, stacklevel=3)
    state, manifest = checkpoint.load(newest)
    cls = tokenizer_class(manifest.get("family"), run)
    return cls.load(cls.components_of(state, manifest))
