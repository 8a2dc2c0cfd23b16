"""Image encoders: the feature map of an align run, and ResNet, ViT and CLIP folders of transformers.

Axes: B images, C channels, H W image, L cells, D width of a cell, P width of the pooled vector.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.align.frozen import AnyDualEncoder, load_dual_encoder
from t2i.align.mapped import MappedDualEncoder, Projections
from t2i.errors import InputError
from t2i.extractors import SAVED_NAME, ImageFeatures
from t2i.extractors.batches import exact_float32
from t2i.files import write_text
from t2i.images import ImageArray, to_model
from t2i.pretrained import ModelFolder, load_image_processor, load_model, open_folder, save_copies
from t2i.tensors import hash_bytes

BATCH = 8


class TowerCells:
    """Common part of all encoders. The encoder is no nn.Module, so only code that uses `tower` can train it."""

    name: str
    tower: nn.Module

    def __init__(self, tower: nn.Module, side: int) -> None:
        self.tower = tower
        with torch.no_grad():
            cells, pooled = tower(torch.zeros(1, 3, side, side))
        edge = int(cells.shape[1] ** 0.5)
        self.grid = edge, cells.shape[1] // edge
        self.cell_dim, self.pooled_dim = cells.shape[2], pooled.shape[1]

    def encode(self, images_BHWC: ImageArray) -> ImageFeatures:
        """Returns cells and pooled vectors of uint8 images of any square size, computed in fixed batches."""
        parts = []
        for start in range(0, len(images_BHWC), BATCH):
            images = to_model(images_BHWC[start : start + BATCH])
            filler = images[-1:].expand(BATCH - len(images), -1, -1, -1)
            with exact_float32("cpu"):
                features = self.tower(torch.cat([images, filler]))
            parts.append([part[: len(images)].clone() for part in features])
        if not parts:
            return ImageFeatures(
                torch.zeros(0, *self.grid, self.cell_dim).flatten(1, 2), torch.zeros(0, self.pooled_dim)
            )
        return ImageFeatures(*map(torch.cat, zip(*parts, strict=True)))

    def digest(self) -> str:
        """Returns the sha256 of weights and preprocessing."""
        total = hashlib.sha256(json.dumps([self.name, *self._decisive()]).encode())
        hash_bytes(total, self.tower.state_dict())
        return total.hexdigest()

    def _decisive(self) -> list[Any]:
        raise NotImplementedError

    def _note(self, directory: Path) -> None:
        write_text(directory / SAVED_NAME, json.dumps({"encoder": self.name}))


class AlignedTower(nn.Module):
    """The normalised 4 x 4 map of the image tower of a dual encoder; pooled: its unit-length embedding."""

    def __init__(self, image: Any) -> None:
        super().__init__()
        self.image = image

    def forward(self, images_BCHW: Tensor) -> ImageFeatures:
        map_BCHW = self.image.map(images_BCHW)
        pooled = F.normalize(self.image.embed(map_BCHW).float(), dim=-1)
        return ImageFeatures(F.silu(self.image.norm(map_BCHW)).flatten(2).transpose(1, 2), pooled)


class MappedTower(nn.Module):
    """The cells of a frozen image encoder; pooled: its features in the space that an aligner found, unit length."""

    def __init__(self, tower: nn.Module, projections: Projections) -> None:
        super().__init__()
        self.tower, self.projections = tower, projections

    def forward(self, images_BCHW: Tensor) -> ImageFeatures:
        cells_BLD, pooled_BQ = self.tower(images_BCHW)
        return ImageFeatures(cells_BLD, self.projections.image(pooled_BQ.float()))


class AlignedCells(TowerCells):
    """A dual encoder of `t2i train align`."""

    name = "aligned"

    def __init__(self, dual: AnyDualEncoder) -> None:
        self.dual = dual
        if isinstance(dual, MappedDualEncoder):
            tower: nn.Module = MappedTower(dual.image_encoder.tower, dual.projections)
        else:
            tower = AlignedTower(dual.model.image)
        super().__init__(tower, dual.config.data.resolution)

    @classmethod
    def open(cls, path: str) -> Self:
        return cls(load_dual_encoder(Path(path)))

    @classmethod
    def load(cls, directory: Path) -> Self:
        return cls(load_dual_encoder(directory / "dual_encoder"))

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.dual.save(directory / "dual_encoder")
        self._note(directory)

    def _decisive(self) -> list[Any]:
        return [self.dual.config.data.resolution]


class TransformersTower(nn.Module):
    """A vision model of transformers with its size and normalisation; images are resized, not cropped."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: Any, side: int, mean: list[float], deviation: list[float]) -> None:
        super().__init__()
        self.model, self.side = model, side
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_BCHW: Tensor) -> ImageFeatures:
        pixels = (images_BCHW + 1) / 2
        if pixels.shape[-1] != self.side:
            pixels = F.interpolate(pixels, (self.side, self.side), mode="bicubic", antialias=True)
        output = self.model(pixel_values=(pixels - self.mean) / self.deviation)
        states = output.last_hidden_state
        if states.ndim == 4:  # a map of a convolutional network; its mean is the pooled vector
            cells = states.flatten(2).transpose(1, 2)
            return ImageFeatures(cells, cells.mean(dim=1))
        return ImageFeatures(states[:, 1:], states[:, 0])  # the class token comes first


class _Transformers(TowerCells):
    """A folder of transformers with the preprocessing of its images."""

    kinds: tuple[str, ...]  # accepted values of `model_type`
    class_name: str
    decisive: tuple[str, ...] = ()  # config keys that change the cells but not the shape of a weight
    options: dict[str, Any] = {}

    def __init__(self, folder: ModelFolder) -> None:
        """Raises InputError if weights or preprocessing are missing."""
        model, _ = load_model(folder, self.class_name, self._optional(folder), **self.options)
        self._processor = load_image_processor(folder)
        self._settings = [
            _side(self._processor, model.config),
            list(self._processor.image_mean),
            list(self._processor.image_std),
        ]
        super().__init__(TransformersTower(model, *self._settings), self._settings[0])

    def _optional(self, folder: ModelFolder) -> list[str]:
        return []

    @classmethod
    def open(cls, path: str) -> Self:
        advice = f"not {cls.name}; name a folder of: {', '.join(cls.kinds)}"
        return cls(open_folder(path, f"image.path={path!r}", cls.kinds, lambda found: advice))

    @classmethod
    def load(cls, directory: Path) -> Self:
        label = f"the image tower {directory / 'tower'}"
        return cls(
            open_folder(directory / "tower", label, cls.kinds, lambda found: f"not {cls.name}; copy the whole run")
        )

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        tower: Any = self.tower
        save_copies(directory / "tower", tower.model, self._processor)
        self._note(directory)

    def _decisive(self) -> list[Any]:
        tower: Any = self.tower
        return [*self._settings, *(getattr(tower.model.config, key, None) for key in self.decisive)]


class ResNetCells(_Transformers):
    """ResNet (He et al., CVPR 2016): the last map."""

    name, kinds, class_name = "resnet", ("resnet",), "ResNetModel"
    decisive = ("layer_type", "downsample_in_first_stage", "hidden_act")


class ViTCells(_Transformers):
    """ViT (Dosovitskiy et al., ICLR 2021) or DeiT: the patch tokens; pooled: the class token."""

    name, kinds, class_name = "vit", ("vit",), "ViTModel"
    options = {"add_pooling_layer": False}
    decisive = ("num_attention_heads", "hidden_act", "layer_norm_eps", "qkv_bias")


class CLIPCells(_Transformers):
    """The image tower of CLIP (Radford et al., ICML 2021): the patch tokens; pooled: the class token."""

    name, kinds, class_name = "clip", ("clip", "clip_vision_model"), "CLIPVisionModel"
    decisive = ("num_attention_heads", "hidden_act", "layer_norm_eps")


def _side(processor: Any, config: Any) -> int:
    """Returns the pixels a side of a model's images, from its config or its preprocessing.

    Raises:
        InputError: neither has a size.
    """
    for size in (getattr(config, "image_size", None), processor.crop_size, processor.size):
        side = (
            size
            if isinstance(size, int)
            else next((size[k] for k in ("height", "shortest_edge") if size and k in size), None)
        )
        if side:
            return int(side)
    raise InputError(
        "the preprocessor_config.json of the image tower has no image size; copy the model's own file there"
    )
