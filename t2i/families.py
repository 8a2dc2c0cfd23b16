"""The families of models: what each must offer, and one entry a family in `FAMILIES`. Imports no torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from pydantic import ValidationError

from t2i.config.explain import ConfigError
from t2i.config.load import read_tree
from t2i.config.section import Section
from t2i.errors import InputError
from t2i.names import nearest, resolve, shown
from t2i.text import TextEncoder, TextFeatures
from t2i.weights import tokenizer_in

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from t2i.images import ImageArray
    from t2i.trained import TrainedRun


# name -> its config and its tensors
Components = dict[str, tuple[dict[str, Any], Mapping[str, "Tensor"]]]


class Sampler(Protocol):
    """One family's way from text to images. An image depends on its seed, its text and the knobs alone.

    Each class also has the two halves of a constructor:
        components_of(run: TrainedRun) -> Components    the parts of a checkpoint that make images
        load(components, text: TextEncoder) -> Self     InputError or ValidationError when they do not fit
    """

    parts: tuple[str, ...]  # names of the components, each a folder of a saved pipeline

    @property
    def guidance(self) -> float:
        """The guidance scale of a call that names none."""
        ...

    def components(self) -> Components: ...

    def to(self, device: "torch.device") -> None: ...

    def tuned(self, settings: Mapping[str, Any]) -> Self:
        """The same with other settings of its family; InputError names an unknown one and those there are."""
        ...

    def settings(self) -> dict[str, Any]:
        """All settings of its family with their values."""
        ...

    def sample(
        self,
        text: TextFeatures,
        seeds: Sequence[int],
        truncation: float = 1.0,
        guidance: float = 1.0,
        on_step: Callable[[float], None] | None = None,
    ) -> "ImageArray":
        """One image a row of `text`; `on_step` is given the share of them that is done."""
        ...


@runtime_checkable
class NoiseSpace(Protocol):
    """A `Sampler` whose noises have a path between them."""

    def sample_between(
        self,
        text: TextFeatures,
        seeds: tuple[int, int],
        weights: Sequence[float],
        truncation: float = 1.0,
        guidance: float = 1.0,
    ) -> "ImageArray":
        """One image a weight and row of `text`; weight 0 is `sample` with the first seed, 1 with the second."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """A `Sampler` that goes through a tokenizer, whose losses are the ceiling of its images."""

    def reconstruct(self, images_BHWC: "ImageArray") -> "ImageArray":
        """Images of the run's size through the tokenizer and back."""
        ...


@runtime_checkable
class Completes(Protocol):
    """A `Sampler` whose images are made of cells, some of which may be given."""

    cells: tuple[int, int]  # rows and columns

    def keeping(self, image_HWC: "ImageArray", redraw_hw: "NDArray[np.bool_]") -> Self:
        """The same, but all its images keep the cells of this one that are not sampled anew, exactly.

        Args:
            image_HWC: an image of the run's size.
            redraw_hw: a flag a cell.

        Raises:
            InputError: the order in which it samples does not allow these cells.
        """
        ...


@runtime_checkable
class Likelihood(Protocol):
    """A `Sampler` that tells how likely the cells of an image are under a caption."""

    def codes(self, image_HWC: "ImageArray") -> "NDArray[np.int64]":
        """The codes of an image of the run's size, in the shape that `log_likelihood` takes."""
        ...

    def sample_with_codes(
        self, text: TextFeatures, seed: int, guidance: float
    ) -> "tuple[NDArray[np.int64], ImageArray]":
        """Codes and pixels [H, W, 3] of one image, that of `sample` with this seed and one row of `text`."""
        ...

    def log_likelihood(self, text: TextFeatures, codes: "NDArray[np.int64]") -> "NDArray[np.float64]":
        """[B, rows, columns] nats of each cell of one image, a caption a row of `text`, without guidance."""
        ...


@dataclass(frozen=True)
class Family:
    """One family of models; classes are named as `module:class`, so that listing families imports none of them."""

    words: str  # what it is, for people
    config: str  # a `Section`, in a file that imports no torch
    sampler: str | None = None  # a `Sampler`: the family makes images from text
    tokenizer: str | None = None  # an `ImageTokenizer`: it turns images into codes and back
    knobs: tuple[str, ...] = ()  # fields of `t2i.sampling.options.Sampling` that change its images
    main: str = "model"  # the part of a checkpoint that makes, codes or embeds images, as training registers it


FAMILIES: dict[str, Family] = {
    "cgan": Family(
        "conditional GAN",
        "t2i.cgan.config:Config",
        sampler="t2i.cgan.sampling:CganSampler",
        main="generator",
        knobs=("guidance", "truncation"),
    ),
    "cvae": Family(
        "one-pass generator over the latents of a VQ-VAE",
        "t2i.cvae.config:Config",
        sampler="t2i.cvae.sampling:CvaeSampler",
        knobs=("truncation",),
    ),
    "align": Family("dual encoder", "t2i.align.config:Config"),
    "prior": Family(
        "autoregressive prior over the codes of a VQ-VAE",
        "t2i.prior.config:Config",
        sampler="t2i.prior.sampling:PriorSampler",
        knobs=("guidance", "temperature", "top_k", "top_p", "steps"),
    ),
    "reader": Family("reader of images: captions and answers", "t2i.reader.config:Config"),
    "vqvae": Family(
        "image tokenizer (VQ-VAE)", "t2i.vqvae.config:Config", tokenizer="t2i.vqvae.frozen:FrozenTokenizer"
    ),
}


@dataclass(frozen=True)
class Source:
    """What a run starts from.

    Attributes:
        place: the folder that it was read from.
        address: as the user named it.
        manifest: of its checkpoint.
        parts: name of a part, as training registers it -> its tensors; the main part has the weights that are sampled from.
        text: the text encoder it was trained with; None for a family without one.
        vocabulary: the tokenizer of a dual encoder, as JSON.
    """

    place: Path
    address: str
    manifest: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, "Tensor"]]
    text: TextEncoder | None = None
    vocabulary: str | None = None


def config_class(family: str) -> type[Section]:
    """The config model of one family; InputError names the nearest family."""
    if family not in FAMILIES:
        raise InputError(f"family {family!r} is unknown{nearest(family, FAMILIES)}; known: {', '.join(FAMILIES)}")
    return resolve(FAMILIES[family].config)


def sampler_class(family: str, where: Path) -> Any:
    """The `Sampler` of a family; InputError names `where` when there is none."""
    found = FAMILIES[family].sampler if family in FAMILIES else None
    if found is None:
        makers = ", ".join(name for name, entry in FAMILIES.items() if entry.sampler)
        raise InputError(
            f"{where} holds a model of the family {shown(family[:40])!r}, which makes no images; families that do: {makers}"
        )
    return resolve(found)


def tokenizer_class(family: str, where: Path) -> Any:
    """The `ImageTokenizer` of a family; InputError names `where` when there is none."""
    found = FAMILIES[family].tokenizer if family in FAMILIES else None
    if found is None:
        first = next(name for name, entry in FAMILIES.items() if entry.tokenizer)
        raise InputError(
            f"{where} holds a model of the family {shown(family[:40])!r}, which is no image tokenizer; train one: "
            f"t2i train {first}"
        )
    return resolve(found)


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
    """A frozen tokenizer: tokens of an image depend on that image alone, and an image on its tokens alone.

    Each class also has the two halves of a constructor:
        components_of(run: TrainedRun) -> Components    the parts of a checkpoint that code images
        load(components) -> Self                        InputError or ValidationError when they do not fit
    """

    parts: tuple[str, ...]  # names of the components, each a folder of a saved pipeline
    resolution: int  # pixels a side
    grid: int  # tokens a side; L = grid * grid, row by row
    codebooks: int  # Q
    codebook_size: int  # K

    def encode(self, images_BHWC: "ImageArray") -> "Tensor":
        """indices_BLQ, int64 in [0, K) on the CPU, of uint8 images [B, resolution, resolution, 3]."""
        ...

    def points(self, images_BHWC: "ImageArray") -> "Tensor":
        """points_BLC, float32 on the CPU: what `encode` replaces by the nearest code. Only a maker of latents asks."""
        ...

    def decode(self, indices_BLQ: "Tensor") -> "ImageArray":
        """uint8 [B, resolution, resolution, 3]."""
        ...

    def codebook(self) -> "Tensor":
        """vectors_KC, float32: what the decoder reads for each code; ValueError for a tokenizer of several codebooks."""
        ...

    def digest(self) -> str:
        """sha256 over all that decides tokens: every weight and buffer, and the config of the networks."""
        ...

    def components(self) -> Components: ...

    def to(self, device: "torch.device") -> None: ...


def load_tokenizer(path: str | Path) -> ImageTokenizer:
    """Reads a run of `t2i train vqvae` (its newest intact checkpoint), or a component that a pipeline saved.

    Args:
        path: may also name a saved model, or a run, that holds a tokenizer, or a model that ships with the package.

    Raises:
        InputError: `path` is neither, is of another family, or is damaged.
    """
    from safetensors import SafetensorError

    from t2i.trained import open_run

    path = tokenizer_in(path)
    if not (path / CONFIG).is_file() and not (path / "checkpoints").is_dir():
        what = "does not exist" if not path.exists() else f"is no tokenizer: it holds neither checkpoints nor {CONFIG}"
        raise InputError(f"{path} {what}; train one: t2i train vqvae --run-dir {path}")
    try:
        return _read_component(path) if (path / CONFIG).is_file() else tokenizer_of(open_run(path))
    except (ValidationError, KeyError, TypeError, ValueError, SafetensorError, OSError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(f"the tokenizer at {path} is damaged ({reason}); train it again: t2i train vqvae") from error


def tokenizer_beside(run: "TrainedRun") -> ImageTokenizer:
    """Reads the tokenizer that the run of a generator keeps beside its checkpoints.

    Raises:
        InputError: it is missing, or another one than the run was trained with.
    """
    folder = run.folder / "tokenizer"
    if not folder.is_dir():
        raise InputError(f"{folder} is missing, where the tokenizer of this run belongs; copy the whole run")
    tokenizer = load_tokenizer(folder)
    if tokenizer.digest() != run.manifest.get("tokenizer_digest"):
        raise InputError(f"{folder} holds another tokenizer than the {run.family} was trained with; put that one there")
    return tokenizer


def tokenizer_of(run: "TrainedRun") -> ImageTokenizer:
    """The tokenizer that a run trained; InputError when it is a run of another family."""
    cls = tokenizer_class(run.family, run.folder)
    return cls.load(cls.components_of(run))


def save_tokenizer(tokenizer: ImageTokenizer, folder: Path) -> None:
    """Writes the folder that `load_tokenizer` reads, whole or not at all."""
    from safetensors.torch import save

    from t2i.files import new_folder

    ((values, tensors),) = tokenizer.components().values()
    with new_folder(folder) as partial:
        (partial / CONFIG).write_text(json.dumps(values, indent=1) + "\n")
        (partial / WEIGHTS).write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))


def _read_component(folder: Path) -> ImageTokenizer:
    from safetensors.torch import load_file

    from t2i.files import open_regular, read_regular

    values = json.loads(read_regular(folder / CONFIG))
    open_regular(folder / WEIGHTS).close()
    family = values.get("family") if isinstance(values, dict) else None
    cls = tokenizer_class(str(family), folder)
    (part,) = cls.parts
    return cls.load({part: (values, load_file(folder / WEIGHTS))})
