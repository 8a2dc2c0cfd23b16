"""A trained, frozen tokenizer; the methods are documented in `t2i.families.ImageTokenizer`."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from t2i import checkpoint
from t2i.errors import InputError
from t2i.families import Components
from t2i.images import ImageArray, to_model, to_uint8
from t2i.trained import TrainedRun
from t2i.vqvae.autoencoder import Autoencoder
from t2i.vqvae.config import Config

CHUNK = 64  # images of 32 px in an internal batch, which is always full
# Keys of the quantiser in the digest. Version 0.1 stored all of them for every kind, and its priors refer to that digest.
DIGESTED: dict[str, Any] = {
    "codebook_size": 2048,
    "dim": 8,
    "levels": [8, 8, 8],
    "depth": 2,
    "commitment": 0.25,
    "warmup_steps": 150,
    "ema_decay": 0.95,
    "revival_steps": 10,
    "revive_below": 0.1,
    "revival_count": 1.0,
}


class FrozenTokenizer:
    """A tokenizer in eval mode and fp32; internal batches are padded, so an image's tokens do not depend on the others."""

    parts = ("tokenizer",)

    def __init__(self, config: Config, weights: Mapping[str, Tensor], kept: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            kept: the config that was stored with the weights, if any, which is part of the digest.
        """
        self.config = config
        self._kept = {**DIGESTED, **(kept or config.model_dump(mode="json"))["quantizer"]}
        with torch.random.fork_rng(devices=[]):  # initialising weights must not use the caller's generator
            self.model = Autoencoder(config)
        checkpoint.load_module(self.model, weights, "tokenizer")
        self.model.eval().requires_grad_(False)
        self.resolution, self.grid = config.data.resolution, config.autoencoder.grid
        self.codebooks, self.codebook_size = self.model.codes.codebooks, self.model.codes.codebook_size

    @classmethod
    def components_of(cls, run: TrainedRun) -> Components:
        return {"tokenizer": (run.manifest["config"], run.weights)}

    @classmethod
    def load(cls, components: Components) -> Self:
        values, tensors = components["tokenizer"]
        return cls(Config.kept(values), tensors, values)

    def components(self) -> Components:
        tensors = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        return {"tokenizer": (self.config.model_dump(mode="json"), tensors)}

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _chunk(self, count: int) -> int:
        """Returns the size of an internal batch. On a CPU it is constant, so that an image does not depend on the others, but
        smaller for large images, as a single image costs a whole batch. On other devices it is a power of 2."""
        if self._device.type == "cpu":
            return max(1, CHUNK * 32**2 // self.resolution**2)
        return min(CHUNK, 1 << max(0, count - 1).bit_length())

    def encode(self, images_BHWC: ImageArray) -> Tensor:
        return self._chunked(
            self.model.encode, images_BHWC, torch.zeros(0, self.grid**2, self.codebooks, dtype=torch.int64)
        )

    def points(self, images_BHWC: ImageArray) -> Tensor:
        return self._chunked(self.model.points, images_BHWC, torch.zeros(0, self.grid**2, self.model.codes.dim))

    @torch.no_grad()
    def _chunked(self, encode: Callable[[Tensor], Tensor], images_BHWC: ImageArray, none: Tensor) -> Tensor:
        side = self.resolution
        if images_BHWC.shape[1:] != (side, side, 3):
            size = "x".join(map(str, images_BHWC.shape[1:]))
            raise InputError(f"the tokenizer encodes images of {side}x{side}x3, got {size}; resize them first")
        parts, chunk = [none], self._chunk(len(images_BHWC))
        for start in range(0, len(images_BHWC), chunk):
            part = images_BHWC[start : start + chunk]
            full = np.concatenate([part, np.zeros((chunk - len(part), side, side, 3), np.uint8)])
            parts.append(encode(to_model(full).to(self._device)).cpu()[: len(part)])
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, indices_BLQ: Tensor) -> ImageArray:
        shape = self.grid**2, self.codebooks
        if indices_BLQ.shape[1:] != shape:
            raise ValueError(f"the tokens of an image have the shape {list(shape)}, got {list(indices_BLQ.shape[1:])}")
        if len(indices_BLQ) and not 0 <= int(indices_BLQ.min()) <= int(indices_BLQ.max()) < self.codebook_size:
            raise ValueError(f"tokens must be in 0 ... {self.codebook_size - 1}")
        parts = [np.zeros((0, self.resolution, self.resolution, 3), np.uint8)]
        chunk = self._chunk(len(indices_BLQ))
        for start in range(0, len(indices_BLQ), chunk):
            part = indices_BLQ[start : start + chunk].to(self._device)
            full = torch.cat([part, part.new_zeros(chunk - len(part), *shape)])
            parts.append(to_uint8(self.model.decode(full))[: len(part)])
        return np.concatenate(parts)

    @torch.no_grad()
    def codebook(self) -> Tensor:
        if self.codebooks > 1:
            raise ValueError(f"a tokenizer with {self.codebooks} codebooks has no single vector per code")
        indices = torch.arange(self.codebook_size, device=self._device)
        return self.model.codes.codes_of(indices[:, None, None]).flatten(1).float()

    def digest(self) -> str:
        parts = {"autoencoder": self.config.autoencoder.model_dump(mode="json"), "quantizer": self._kept}
        total = hashlib.sha256(json.dumps([self.resolution, parts], sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            total.update(name.encode())
            total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return total.hexdigest()
