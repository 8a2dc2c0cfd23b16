"""Frozen text and image encoders with linear maps into one space, the result of all aligners except `contrastive`.

Axes: B batch, C channels, H W image, T text tokens, D token width, P text features, Q image features, E shared space.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.align.config import Config
from t2i.files import write_text
from t2i.images import ImageArray
from t2i.names import resolve
from t2i.tensors import hash_values
from t2i.trained import Tensors

DESCRIPTION, WEIGHTS = "dual_encoder.json", "model.safetensors"
# resolved by name, as these packages import this one
TEXT, IMAGE = "t2i.text:load_encoder", "t2i.extractors:load_image_encoder"
FIELDS = ("text_mean", "text_map", "image_mean", "image_map", "log_scale")


class Projections(nn.Module):
    """The linear maps of both sides and the temperature of their cosines, in float32."""

    text_mean: Tensor
    text_map: Tensor
    image_mean: Tensor
    image_map: Tensor
    log_scale: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError if the tensors are not finite or their shapes do not fit."""
        super().__init__()
        for name in FIELDS:
            if not tensors[name].isfinite().all():
                raise ValueError(f"{name} is not finite")
            self.register_buffer(name, tensors[name].float())
        shapes = [self.text_map.shape, self.image_map.shape]
        means = [self.text_mean.shape, self.image_mean.shape]
        if means != [shape[:1] for shape in shapes] or shapes[0][1:] != shapes[1][1:]:
            raise ValueError(f"the shapes of its maps do not fit: {[list(shape) for shape in (*means, *shapes)]}")

    def text(self, text_BP: Tensor) -> Tensor:
        """Returns unit-length embedding_BE."""
        return F.normalize((text_BP - self.text_mean) @ self.text_map, dim=-1)

    def tokens(self, tokens_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Returns tokens_BTE if token states have the width of the pooled vector, otherwise the unchanged states."""
        if tokens_BTD.shape[-1] != len(self.text_mean):
            return tokens_BTD
        return (tokens_BTD - self.text_mean) @ self.text_map * mask_BT[..., None]

    def image(self, image_BQ: Tensor) -> Tensor:
        """Returns unit-length embedding_BE."""
        return F.normalize((image_BQ - self.image_mean) @ self.image_map, dim=-1)


class MappedDualEncoder:
    """Two frozen encoders and their maps, with the methods of `FrozenDualEncoder`."""

    def __init__(self, config: Config, text: Any, image: Any, weights: Tensors) -> None:
        """
        Args:
            text, image: a `t2i.text.TextEncoder` and a `t2i.extractors.ImageEncoder`.
            weights: tensors of `Projections`.

        Raises:
            ValueError: the maps do not fit the encoders.
        """
        self.config, self.encoder, self.image_encoder = config, text, image
        self.projections = Projections(weights).requires_grad_(False).eval()
        image.tower.requires_grad_(False).eval()
        sides = len(self.projections.text_mean), len(self.projections.image_mean)
        if sides != (text.pooled_dim, image.pooled_dim):
            raise ValueError(
                f"its maps take {sides} features, but its encoders have {text.pooled_dim, image.pooled_dim}"
            )
        self.max_tokens: int = text.max_tokens
        self.pooled_dim = self.projections.text_map.shape[1]
        mapped = text.token_dim == text.pooled_dim
        self.token_dim: int = self.pooled_dim if mapped else text.token_dim
        self.scale = float(self.projections.log_scale.exp())
        self.resizing = f"that of {image.name}"

    def images(self, images_BHWC: ImageArray) -> Tensor:
        """Returns unit-length embeddings [B, E] of uint8 images of any square size."""
        return self.projections.image(self.image_encoder.encode(images_BHWC).pooled_BP)

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """Returns unit-length embedding_BE of images in [-1, 1], with gradients to them."""
        return self.projections.image(self.image_encoder.tower(images_BCHW)[1].float())

    def text(self, captions: Sequence[str]) -> Tensor:
        """Returns unit-length embeddings [B, E] of captions."""
        return self.states(captions)[2]

    def states(self, captions: Sequence[str], max_tokens: int | None = None) -> tuple[Tensor, Tensor, Tensor, int]:
        """Returns token states [B, T, D], mask [B, T], embeddings [B, E], and the number of captions truncated to T.

        The count does not include captions that the encoder truncates, of which it warns.

        Args:
            max_tokens: T; None: the encoder's limit. The embedding is always that of the whole caption.
        """
        tokens, mask, pooled = self.encoder.encode(captions)
        length = max_tokens or self.max_tokens
        cut = int(mask[:, length:].any(dim=1).sum())
        tokens, mask = tokens[:, :length], mask[:, :length]
        return self.projections.tokens(tokens, mask), mask, self.projections.text(pooled), cut

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        """Returns the unique words that the encoder skips; empty for encoders of any word."""
        unknown_words = getattr(self.encoder, "unknown_words", None)
        return [] if unknown_words is None else unknown_words(captions)

    def to(self, device: torch.device) -> None:
        """Moves the modules that `embed_images` needs."""
        self.image_encoder.tower.to(device)
        self.projections.to(device)

    def digest(self) -> str:
        """Returns the sha256 of both encoders and the maps."""
        total = hashlib.sha256(json.dumps([self.encoder.digest(), self.image_encoder.digest()]).encode())
        hash_values(total, self.projections.state_dict())
        return total.hexdigest()

    def built_on(self) -> list[str]:
        """Returns the digests of the dual encoders that either side is built on."""
        inner = [getattr(side, "dual", None) for side in (self.encoder, self.image_encoder)]
        return [digest for dual in inner if dual is not None for digest in (dual.digest(), *dual.built_on())]

    def save(self, directory: Path) -> None:
        """Writes a folder for `t2i.align.frozen.load_dual_encoder`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / WEIGHTS).write_bytes(safetensors.torch.save(dict(self.projections.state_dict())))
        self.encoder.save(directory / "text")
        self.image_encoder.save(directory / "image")
        write_text(directory / DESCRIPTION, json.dumps({"config": self.config.model_dump(mode="json")}))


def load_mapped(config: Config, folder: Path, weights: Tensors) -> MappedDualEncoder:
    """Loads a mapped dual encoder; its encoders are in `text` and `image` of the folder."""
    return MappedDualEncoder(config, resolve(TEXT)(folder / "text"), resolve(IMAGE)(folder / "image"), weights)
