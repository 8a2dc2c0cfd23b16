"""Lists the families of models in `FAMILIES` and defines the protocols that their classes implement. Imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from t2i.config.explain import ConfigError
from t2i.config.load import read_tree
from t2i.config.section import Section
from t2i.errors import InputError
from t2i.names import nearest, resolve, shown
from t2i.text import TextEncoder, TextFeatures

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from t2i.images import ImageArray

# name -> (config, tensors)
Components = dict[str, tuple[dict[str, Any], Mapping[str, "Tensor"]]]


def parameters_of(components: Components) -> int:
    """Returns the number of parameters of all components."""
    return sum(tensor.numel() for _, tensors in components.values() for tensor in tensors.values())


class Sampler(Protocol):
    """Generates images from text. An image depends on its seed, its text and the sampling settings alone.

    Each class also has two functions that construct it:
        components_of(run: TrainedRun) -> Components    the parts of a checkpoint that generate images
        load(components, text: TextEncoder) -> Self     InputError or ValidationError if they do not fit
    """

    parts: tuple[str, ...]  # names of the components, each a folder of a saved pipeline

    @property
    def guidance(self) -> float:
        """The default guidance scale."""
        ...

    def components(self) -> Components: ...

    def to(self, device: "torch.device") -> None: ...

    def tuned(self, settings: Mapping[str, Any]) -> Self:
        """Returns a copy with other settings of its family; raises InputError for an unknown one."""
        ...

    def settings(self) -> dict[str, Any]:
        """Returns the values of all settings of its family."""
        ...

    def sample(
        self,
        text: TextFeatures,
        seeds: Sequence[int],
        truncation: float = 1.0,
        guidance: float = 1.0,
        on_step: Callable[[float], None] | None = None,
    ) -> "ImageArray":
        """Returns one image per row of `text`; calls `on_step` with the share of the work that is done."""
        ...


@runtime_checkable
class NoiseSpace(Protocol):
    """A `Sampler` that maps noise vectors to images, so that images between two noises exist."""

    z_dim: int  # Z

    def sample_noise(
        self,
        text: TextFeatures,
        z_BZ: "Tensor",
        truncation: float = 1.0,
        guidance: float = 1.0,
        on_step: Callable[[float], None] | None = None,
    ) -> "ImageArray":
        """Returns one image per row of `text` and of the noise; with `t2i.seeding.noise` of seeds, the images of `sample`."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """A `Sampler` that generates codes of an image tokenizer, whose reconstructions bound the quality of its images."""

    def reconstruct(self, images_BHWC: "ImageArray") -> "ImageArray":
        """Returns images of the run's size after encoding and decoding them."""
        ...


@runtime_checkable
class Completes(Protocol):
    """A `Sampler` whose images consist of cells, and which can complete an image of which some cells are given."""

    cells: tuple[int, int]  # rows and columns

    def keeping(self, image_HWC: "ImageArray", redraw_hw: "NDArray[np.bool_]") -> Self:
        """Returns a sampler whose images keep exactly those cells of an image that are not sampled again.

        Args:
            image_HWC: an image of the run's size.
            redraw_hw: True for each cell that is sampled again.

        Raises:
            InputError: the sampling order does not allow these cells.
        """
        ...


@runtime_checkable
class Likelihood(Protocol):
    """A `Sampler` that computes the likelihood of an image's cells given a caption."""

    def codes(self, image_HWC: "ImageArray") -> "NDArray[np.int64]":
        """Returns the codes of an image of the run's size, in the shape that `log_likelihood` takes."""
        ...

    def sample_with_codes(
        self, text: TextFeatures, seed: int, guidance: float
    ) -> "tuple[NDArray[np.int64], ImageArray]":
        """Returns codes and pixels [H, W, 3] of the image that `sample` gives for this seed and one row of `text`."""
        ...

    def log_likelihood(self, text: TextFeatures, codes: "NDArray[np.int64]") -> "NDArray[np.float64]":
        """Returns the log likelihood [B, rows, columns], in nats, of each cell of one image given each row of `text`,
        without guidance."""
        ...


@dataclass(frozen=True)
class Family:
    """One family of models. Classes are given as `module:class`, so that listing families imports none of them."""

    words: str  # a description for the user
    config: str  # a `Section`, in a file that imports no torch
    sampler: str | None = None  # a `Sampler`, if the family generates images from text
    tokenizer: str | None = None  # an `ImageTokenizer`, if the family encodes images as codes
    knobs: tuple[str, ...] = ()  # fields of `t2i.sampling.options.Sampling` that have an effect on its images
    main: str = "model"  # name of the main network in checkpoints


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
    """The weights that a run starts from.

    Attributes:
        place: the folder that they were read from.
        address: the address that the user gave.
        manifest: manifest of their checkpoint.
        parts: name of a part, as training registers it -> its tensors; the main part has the weights used for sampling.
        text: the text encoder that they were trained with; None for a family without one.
        vocabulary: the tokenizer of a dual encoder or a reader, as JSON.
    """

    place: Path
    address: str
    manifest: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, "Tensor"]]
    text: TextEncoder | None = None
    vocabulary: str | None = None


def config_class(family: str) -> type[Section]:
    """Returns the config model of a family; raises InputError with the nearest name for an unknown family."""
    if family not in FAMILIES:
        raise InputError(f"family {family!r} is unknown{nearest(family, FAMILIES)}; known: {', '.join(FAMILIES)}")
    return resolve(FAMILIES[family].config)


def sampler_class(family: str, where: Path) -> Any:
    """Returns the `Sampler` class of a family; raises InputError, which names `where`, if the family has none."""
    target = FAMILIES[family].sampler if family in FAMILIES else None
    if target is None:
        generators = ", ".join(name for name, entry in FAMILIES.items() if entry.sampler)
        raise InputError(
            f"{where} holds a model of the family {shown(family[:40])!r}, which does not generate images; families that do: "
            f"{generators}"
        )
    return resolve(target)


def family_of(source: Path | str) -> str:
    """Returns the `family:` of a config file, a run or a shipped config."""
    tree, _, problems = read_tree(source)
    if problems:
        raise ConfigError(problems)
    if not isinstance(tree.get("family"), str):
        raise ConfigError([f"family: missing in {source}; add a line `family: {' | '.join(FAMILIES)}`"])
    return tree["family"]


class ImageTokenizer(Protocol):
    """A frozen image tokenizer. The tokens of an image depend on that image alone, and an image on its tokens alone.

    Each class also has two functions that construct it:
        components_of(run: TrainedRun) -> Components    the parts of a checkpoint that encode images
        load(components) -> Self                        InputError or ValidationError if they do not fit
    """

    parts: tuple[str, ...]  # names of the components, each a folder of a saved pipeline
    resolution: int  # pixels per side
    grid: int  # tokens per side; L = grid * grid, row by row
    codebooks: int  # Q
    codebook_size: int  # K

    def encode(self, images_BHWC: "ImageArray") -> "Tensor":
        """Returns indices_BLQ, int64 in [0, K) on the CPU, of uint8 images [B, resolution, resolution, 3]."""
        ...

    def points(self, images_BHWC: "ImageArray") -> "Tensor":
        """Returns points_BLC, float32 on the CPU: the latents that `encode` replaces by the nearest code."""
        ...

    def decode(self, indices_BLQ: "Tensor") -> "ImageArray":
        """Returns images, uint8 [B, resolution, resolution, 3]."""
        ...

    def codebook(self) -> "Tensor":
        """Returns vectors_KC, float32: the decoder's input for each code; raises ValueError if there are several codebooks."""
        ...

    def digest(self) -> str:
        """Returns the SHA-256 of everything that tokens depend on: all weights and buffers, and the networks' config."""
        ...

    def components(self) -> Components: ...

    def to(self, device: "torch.device") -> None: ...
