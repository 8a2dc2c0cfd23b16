"""A dual encoder on disk: a training run, or a folder of `dual_encoder.json` and `model.safetensors`."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from t2i import checkpoint
from t2i.align.config import Config
from t2i.align.dual_encoder import DualEncoder
from t2i.align.mapped import DESCRIPTION, WEIGHTS, MappedDualEncoder, load_mapped
from t2i.align.tokenizer import CaptionTokenizer, length_batches
from t2i.errors import InputError
from t2i.files import open_regular, read_regular
from t2i.images import ImageArray, to_model, to_uint8
from t2i.names import brief
from t2i.tensors import hash_values
from t2i.trained import Tensors, open_run

TOKENIZER = "tokenizer.json"
CHUNK, TEXT_CHUNK = 256, 64


class FrozenDualEncoder:
    """A trained dual encoder in eval mode, without gradients to its weights, with fixed internal batches."""

    def __init__(self, config: Config, tokenizer: CaptionTokenizer, weights: Tensors) -> None:
        self.config, self.tokenizer = config, tokenizer
        # initialising weights must not advance the caller's generator
        with torch.random.fork_rng(devices=[]):
            self.model = DualEncoder(config, len(tokenizer))
        checkpoint.load_module(self.model, weights, "dual encoder")
        if bad := next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None):
            raise ValueError(f"{bad} is not finite")
        self.model.eval().requires_grad_(False)
        self.max_tokens, self.token_dim = config.text_tower.max_tokens, config.text_tower.width
        self.pooled_dim, self.scale = config.embedding, float(self.model.scale())
        side = config.data.resolution
        self.resizing = f"antialiased bilinear to {side}x{side}"

    def images(self, images_BHWC: ImageArray) -> Tensor:
        """Returns unit-length embeddings [B, E] of uint8 images of any square size."""
        parts = [images_BHWC[start : start + CHUNK] for start in range(0, len(images_BHWC), CHUNK)]
        with torch.no_grad():
            return torch.cat([self.model.embed_images(to_model(part)) for part in parts])

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """Returns unit-length embedding_BE of images in [-1, 1], with gradients to them."""
        return self.model.embed_images(images_BCHW)

    def text(self, captions: Sequence[str]) -> Tensor:
        """Returns unit-length embeddings [B, E] of captions."""
        return self.states(captions)[2]

    def decode(self, embeddings_BE: Tensor) -> ImageArray:
        """Returns uint8 images of embeddings, which are normalised first: those of images or captions, or means of several.

        Raises:
            InputError: the dual encoder has no image decoder.
        """
        decoder = self.model.image_decoder
        if decoder is None:
            raise InputError(
                "this dual encoder has no image decoder; train one with --set image_weight=10 (t2i train align)"
            )
        unit_BE = F.normalize(embeddings_BE, dim=-1)
        with torch.no_grad():
            return np.concatenate([to_uint8(decoder(part)) for part in unit_BE.split(CHUNK)])

    def states(self, captions: Sequence[str], max_tokens: int | None = None) -> tuple[Tensor, Tensor, Tensor, int]:
        """Returns token states [B, T, D], mask [B, T], unit-length embeddings [B, E], and the number of truncated captions.

        The bits of a row do not depend on the other captions.

        Args:
            max_tokens: T; None: the limit of the tower.
        """
        ids, mask, cut = self.tokenizer(captions, max_tokens)
        tokens = torch.zeros(*ids.shape, self.config.text_tower.width)
        embeddings = torch.zeros(len(ids), self.config.embedding)
        for rows, count, length in length_batches(mask, TEXT_CHUNK):
            with torch.no_grad():
                states, embedding = self.model.text(ids[rows, :length], mask[rows, :length], trim=False)
            tokens[rows[:count], :length] = states[:count]
            embeddings[rows[:count]] = F.normalize(embedding[:count], dim=-1)
        return tokens, mask, embeddings, cut

    def to(self, device: torch.device) -> None:
        """Moves the modules that `embed_images` needs."""
        self.model.image.to(device)

    def built_on(self) -> list[str]:
        """Returns an empty list, as this encoder is not built on other dual encoders."""
        return []

    def digest(self) -> str:
        """Returns the sha256 of the weights and the tokenizer."""
        total = hashlib.sha256(self.tokenizer.json_text.encode())
        hash_values(total, self.model.state_dict())
        return total.hexdigest()

    def save(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        """Writes a folder for `load_dual_encoder`; `dtype` float16 halves its size."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.to(dtype).contiguous() for name, tensor in self.model.state_dict().items()}
        (directory / WEIGHTS).write_bytes(safetensors.torch.save(weights))
        description = {"config": self.config.model_dump(mode="json"), "tokenizer": self.tokenizer.json_text}
        (directory / DESCRIPTION).write_text(json.dumps(description))


AnyDualEncoder = FrozenDualEncoder | MappedDualEncoder


def load_dual_encoder(path: Path) -> AnyDualEncoder:
    """Reads a run of `t2i train align`, or a folder that `FrozenDualEncoder.save` wrote.

    Raises:
        InputError: `path` is neither, or its checkpoints are damaged.
    """
    try:
        return _read(path)
    except InputError:  # is a ValueError with a message of its own
        raise
    # the errors of JSON, UTF-8 and pydantic are ValueErrors
    except (ValueError, KeyError, TypeError, OSError, RecursionError, SafetensorError) as error:
        raise InputError(
            f"the dual encoder at {path} is damaged ({brief(error)}); train it again: t2i train align"
        ) from error


def _read(path: Path) -> AnyDualEncoder:
    if (path / DESCRIPTION).is_file():
        description = json.loads(read_regular(path / DESCRIPTION))
        open_regular(path / WEIGHTS).close()
        weights = {name: tensor.float() for name, tensor in safetensors.torch.load_file(path / WEIGHTS).items()}
        config = Config.kept(description["config"])
        if config.is_frozen:
            return load_mapped(config, path, weights)
        return FrozenDualEncoder(config, _tokenizer(description["tokenizer"], config), weights)
    if not path.exists():
        raise InputError(f"there is no folder {path}; name a run of t2i train align")
    if not (path / TOKENIZER).is_file() and not (path / "image").is_dir():
        raise InputError(
            f"{path} is not a dual encoder, as it has neither {DESCRIPTION} nor {TOKENIZER}; name a run of t2i train align"
        )
    run = open_run(path)
    config = Config.kept(run.manifest["config"])
    if config.is_frozen:
        return load_mapped(config, path, run.weights)
    return FrozenDualEncoder(config, _tokenizer(read_regular(path / TOKENIZER).decode(), config), run.weights)


def _tokenizer(json_text: str, config: Config) -> CaptionTokenizer:
    try:
        return CaptionTokenizer(json_text, config.text_tower.max_tokens)
    except Exception as error:  # the library raises no narrower one
        raise ValueError(f"its tokenizer: {error}") from error
