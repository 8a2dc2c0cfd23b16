"""Frozen networks that see images, behind one protocol and one door. A new one is one file and one line in `EXTRACTORS`.

An `Extractor` gives features to compare; an `ImageEncoder`, the mirror of `t2i.text.TextEncoder`, gives the cells of an
image to a model that reads them.

Axes: B images of one call, C channels, H W image, D features, L cells, P pooled vector. Imports no torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.metrics import Features
from t2i.names import nearest, resolve
from t2i.weights import scorer_dir

if TYPE_CHECKING:
    import torch
    from torch import nn

    from t2i.images import ImageArray


# clean: Pillow's antialiased bicubic in float (clean-fid); legacy: TensorFlow 1's bilinear (the first FID,
# torch-fidelity); torch: PyTorch's bilinear without antialiasing (pytorch-fid). Scores agree within one of them and
# never across.
Resize = Literal["clean", "legacy", "torch"]


class Extractor(Protocol):
    """A frozen map from images to features. A row depends on its image alone, never on the batch beside it."""

    name: str  # in the names of scores by its image features, e.g. `shapes` in `fid-shapes@1000`
    clip_name: str | None  # in the names of scores by both its towers, e.g. `aligned`; None: it reads no captions
    classes: NDArray[np.float32] | None  # [classes, D], a linear classifier without bias; None: it has none
    dim: int
    resize: str  # how images reach the network's size: a `Resize`, or words where the extractor has its own way

    def features(self, images_BHWC: "ImageArray") -> Features:
        """uint8 [B, H, W, 3] -> float32 [B, D]."""
        ...

    def digest(self) -> str:
        """sha256 of all that decides the features: the weights and, where it has them, preprocessing and tokenizer."""
        ...


class ImageTextExtractor(Extractor, Protocol):
    """An extractor that also reads captions into the same space, for CLIP score, retrieval, re-ranking and guidance."""

    clip_name: str
    side: int  # pixels a side to which its image tower brings an image
    scale: float  # 1 / temperature of its contrastive training

    def text_features(self, captions: Sequence[str]) -> Features:
        """B captions -> float32 [B, D]."""
        ...

    def embed_images(self, images_BCHW: "torch.Tensor") -> "torch.Tensor":
        """Unit-length embeddings [B, D] of float images in [-1, 1], with gradients to the images."""
        ...

    def embed_text(self, captions: Sequence[str]) -> "torch.Tensor":
        """Unit-length embeddings [B, D] of captions, on the CPU."""
        ...

    def to(self, device: "torch.device") -> Self:
        """Moves the networks that `embed_images` needs."""
        ...


# kind -> "module:function"; each function is open(path: str, resize: Resize, device: str) -> Extractor
EXTRACTORS: dict[str, str] = {
    "embedded": "t2i.extractors.aligned:open_embedded",
    "align": "t2i.extractors.aligned:open_aligned",
    "inception": "t2i.extractors.inception:open_inception",
    "clip": "t2i.extractors.clip:open_clip",
    "dinov2": "t2i.extractors.dinov2:open_dinov2",
}


def open_extractor(address: str, resize: Resize = "clean", device: str = "cpu") -> Extractor:
    """Opens the extractor at `address`: `kind` or `kind:path`.

    `embedded` ships with the package; `align:RUN` is a run of `t2i train align`, `inception:FILE` a file of weights,
    `clip:FOLDER` and `dinov2:FOLDER` are folders of transformers or names on the hub.

    Args:
        resize: for kinds without preprocessing of their own, which are inception and dinov2.

    Raises:
        InputError: no such kind, no such file, or weights of another network.
    """
    kind, _, path = address.partition(":")
    if kind not in EXTRACTORS:
        raise InputError(
            f"extractor {address!r} is unknown{nearest(kind, EXTRACTORS)}: give kind or kind:path, "
            f"kind one of {', '.join(EXTRACTORS)}"
        )
    if (kind == "embedded") == bool(path):
        raise InputError(
            f"extractor {address!r}: {kind} takes {'no path' if path else 'a path, as in ' + kind + ':PATH'}"
        )
    return resolve(EXTRACTORS[kind])(path, resize, device)


def open_image_text(address: str | Path | None, device: str = "cpu") -> ImageTextExtractor:
    """Opens an extractor that reads captions; None: the embedded one.

    Args:
        address: as `open_extractor` takes it, or the directory of a run of `t2i train align`.

    Raises:
        InputError: there is none, or it reads no captions.
    """
    extractor = open_extractor(address_of(address), device=device)
    if extractor.clip_name is None:
        raise InputError(f"{address} reads no captions; give embedded, align:RUN or clip:FOLDER")
    return extractor  # pyright: ignore[reportReturnType]


def address_of(encoder: str | Path | None) -> str:
    """The address of a dual encoder that may be named by its run directory alone; None: `embedded`."""
    if encoder is None:
        return "embedded"
    return str(encoder) if str(encoder).partition(":")[0] in EXTRACTORS else f"align:{encoder}"


class ImageFeatures(NamedTuple):
    """Encoded images, as a model reads them: float32."""

    cells_BLD: "torch.Tensor"  # row by row, from the top left
    pooled_BP: "torch.Tensor"


class ImageEncoder(Protocol):
    """A map from images to cells. A row depends on its image alone, never on the batch beside it.

    Each class also has two constructors:
        open(path: str) -> Self            for a new run
        load(directory: Path) -> Self      from a folder that `save` wrote
    """

    name: str  # the key in IMAGE_ENCODERS
    grid: tuple[int, int]  # rows and columns; L = rows * columns
    cell_dim: int
    pooled_dim: int
    tower: "nn.Module"  # images in [-1, 1] -> ImageFeatures, with gradients to weights that ask for them

    def encode(self, images_BHWC: "ImageArray") -> ImageFeatures:
        """uint8 [B, H, W, 3] of any square size, on the CPU, without gradients."""
        ...

    def digest(self) -> str:
        """sha256 of all that decides the cells."""
        ...

    def save(self, directory: Path) -> None:
        """Writes everything `load` needs."""
        ...


# name -> "module:class"
IMAGE_ENCODERS: dict[str, str] = {
    "aligned": "t2i.extractors.cells:AlignedCells",
    "classical": "t2i.extractors.classical:ClassicalCells",
    "resnet": "t2i.extractors.cells:ResNetCells",
    "vit": "t2i.extractors.cells:ViTCells",
    "clip": "t2i.extractors.cells:CLIPCells",
}
SAVED_NAME = "encoder.json"


def open_image_encoder(name: str, path: str | None = None) -> ImageEncoder:
    """Opens the image encoder `name` at `path`: a run of `t2i train align`, or a folder of transformers.

    Args:
        path: None: of `aligned` the dual encoder that ships with the package, and always of `classical`.

    Raises:
        InputError: nothing that it reads is there, no path where one is needed, or one where none is.
    """
    if path is None and name not in ("aligned", "classical"):
        raise InputError(f"image.encoder={name} needs image.path: a folder of transformers with its preprocessing")
    if path is not None and name == "classical":
        raise InputError(f"image.path={path} has no effect with image.encoder=classical; remove it")
    return resolve(IMAGE_ENCODERS[name]).open(path or str(scorer_dir()))


def load_image_encoder(directory: Path) -> ImageEncoder:
    """Loads the encoder that `save` wrote into `directory`.

    Raises:
        InputError: it holds none, or a damaged one.
    """
    from t2i.files import read_json

    saved: Any = read_json(directory / SAVED_NAME)
    name = saved.get("encoder") if isinstance(saved, dict) else None
    if name not in IMAGE_ENCODERS:
        raise InputError(f"{directory / SAVED_NAME} names no image encoder; valid ones: {', '.join(IMAGE_ENCODERS)}")
    return resolve(IMAGE_ENCODERS[name]).load(directory)
