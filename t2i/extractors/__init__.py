"""Frozen networks that see images, with common protocols. A new one is one file and one line in `EXTRACTORS`.

An `Extractor` computes one feature vector for each image, for metrics. An `ImageEncoder`, the counterpart of
`t2i.text.TextEncoder`, computes a grid of cells, for models that read images.

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
# torch-fidelity); torch: PyTorch's bilinear without antialiasing (pytorch-fid). Scores with different resizes are not
# comparable.
Resize = Literal["clean", "legacy", "torch"]


class Extractor(Protocol):
    """A frozen map from images to features. Each row depends only on its image, not on the batch."""

    name: str  # in the names of scores of image features, e.g. `shapes` in `fid-shapes@1000`
    clip_name: str | None  # in the names of scores of images and captions, e.g. `aligned`; None: it reads no captions
    classes: NDArray[np.float32] | None  # [classes, D], a linear classifier without bias, if there is one
    dim: int
    resize: str  # a `Resize`, or a description of the extractor's own resizing

    def features(self, images_BHWC: "ImageArray") -> Features:
        """Maps uint8 [B, H, W, 3] to float32 [B, D]."""
        ...

    def digest(self) -> str:
        """Returns the sha256 of everything that decides the features: weights, preprocessing and tokenizer."""
        ...


class ImageTextExtractor(Extractor, Protocol):
    """An extractor that also maps captions to the same space, for CLIP score, retrieval, re-ranking and guidance."""

    clip_name: str
    side: int  # pixels a side of an image in its image tower
    scale: float  # 1 / temperature of the contrastive training

    def text_features(self, captions: Sequence[str]) -> Features:
        """Maps B captions to float32 [B, D]."""
        ...

    def embed_images(self, images_BCHW: "torch.Tensor") -> "torch.Tensor":
        """Returns unit-length embeddings [B, D] of float images in [-1, 1], with gradients to the images."""
        ...

    def embed_text(self, captions: Sequence[str]) -> "torch.Tensor":
        """Returns unit-length embeddings [B, D] of captions, on the CPU."""
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
        resize: for inception and dinov2; the other kinds have their own preprocessing.

    Raises:
        InputError: there is no such kind or file, or the weights are of another network.
    """
    kind, _, path = address.partition(":")
    if kind not in EXTRACTORS:
        raise InputError(
            f"extractor {address!r} is unknown{nearest(kind, EXTRACTORS)}: write kind or kind:path, "
            f"kind one of {', '.join(EXTRACTORS)}"
        )
    if (kind == "embedded") == bool(path):
        raise InputError(
            f"extractor {address!r}: {kind} takes {'no path' if path else 'a path, as in ' + kind + ':PATH'}"
        )
    return resolve(EXTRACTORS[kind])(path, resize, device)


def open_image_text(address: str | Path | None, device: str = "cpu") -> ImageTextExtractor:
    """Opens an extractor that reads captions.

    Args:
        address: an address for `open_extractor`, or the directory of a run of `t2i train align`; None: the embedded one.

    Raises:
        InputError: there is no such extractor, or it reads no captions.
    """
    extractor = open_extractor(address_of(address), device=device)
    if extractor.clip_name is None:
        raise InputError(f"{address} reads no captions; name embedded, align:RUN or clip:FOLDER")
    return extractor  # pyright: ignore[reportReturnType]


def address_of(encoder: str | Path | None) -> str:
    """Returns the address of a dual encoder that may be named by its run directory; None: `embedded`."""
    if encoder is None:
        return "embedded"
    return str(encoder) if str(encoder).partition(":")[0] in EXTRACTORS else f"align:{encoder}"


class ImageFeatures(NamedTuple):
    """Encoded images, float32."""

    cells_BLD: "torch.Tensor"  # row by row, from the top left
    pooled_BP: "torch.Tensor"


class ImageEncoder(Protocol):
    """A map from images to cells. Each row depends only on its image, not on the batch.

    Each class also has two constructors:
        open(path: str) -> Self            for a new run
        load(directory: Path) -> Self      from a folder that `save` wrote
    """

    name: str  # the key in IMAGE_ENCODERS
    grid: tuple[int, int]  # rows and columns; L = rows * columns
    cell_dim: int
    pooled_dim: int
    tower: "nn.Module"  # images in [-1, 1] -> ImageFeatures, differentiable

    def encode(self, images_BHWC: "ImageArray") -> ImageFeatures:
        """Encodes uint8 [B, H, W, 3] of any square size, on the CPU, without gradients."""
        ...

    def digest(self) -> str:
        """Returns the sha256 of everything that decides the cells."""
        ...

    def save(self, directory: Path) -> None:
        """Writes the files that `load` needs."""
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
        path: None: for `aligned` the dual encoder that ships with the package; `classical` has none.

    Raises:
        InputError: the path is missing, has no effect, or does not hold such an encoder.
    """
    if path is None and name not in ("aligned", "classical"):
        raise InputError(f"image.encoder={name} needs image.path: a folder of transformers with its preprocessing")
    if path is not None and name == "classical":
        raise InputError(f"image.path={path} has no effect with image.encoder=classical; remove it")
    return resolve(IMAGE_ENCODERS[name]).open(path or str(scorer_dir()))


def load_image_encoder(directory: Path) -> ImageEncoder:
    """Loads the encoder that `save` wrote into `directory`.

    Raises:
        InputError: the folder holds no encoder, or a damaged one.
    """
    from t2i.files import read_json

    saved: Any = read_json(directory / SAVED_NAME)
    name = saved.get("encoder") if isinstance(saved, dict) else None
    if name not in IMAGE_ENCODERS:
        raise InputError(f"{directory / SAVED_NAME} names no image encoder; valid ones: {', '.join(IMAGE_ENCODERS)}")
    return resolve(IMAGE_ENCODERS[name]).load(directory)
