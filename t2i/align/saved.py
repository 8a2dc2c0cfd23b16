"""A dual encoder on disk: a training run, or a folder of `dual_encoder.json` and `model.safetensors`."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from t2i import checkpoint
from t2i.align.config import Config
from t2i.align.model import DualEncoder
from t2i.align.tokenizer import CaptionTokenizer
from t2i.errors import InputError
from t2i.images import ImageArray, to_model

DESCRIPTION, WEIGHTS, TOKENIZER = "dual_encoder.json", "model.safetensors", "tokenizer.json"
CHUNK, TEXT_CHUNK = 256, 64


class FrozenDualEncoder:
    """A trained dual encoder for reading: no gradients to its weights, eval mode, fixed internal batches."""

    def __init__(self, config: Config, tokenizer: CaptionTokenizer, weights: dict[str, Tensor]) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.model = DualEncoder(config, len(tokenizer))
        checkpoint.load_module(self.model, weights, "dual encoder")
        self.model.eval().requires_grad_(False)

    def images(self, images_BHWC: ImageArray) -> Tensor:
        """Unit-length embeddings [B, E] of uint8 pictures of any square size."""
        parts = [images_BHWC[start : start + CHUNK] for start in range(0, len(images_BHWC), CHUNK)]
        with torch.no_grad():
            return torch.cat([self.model.embed_images(to_model(part)) for part in parts])

    def text(self, captions: Sequence[str]) -> Tensor:
        """Unit-length embeddings [B, E] of captions."""
        return self.states(captions)[2]

    def states(self, captions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, int]:
        """Token states [B, T, D], mask [B, T], unit-length embeddings [B, E], and how many captions were cut.

        Batches have one fixed shape, filled up with empty captions: a row has the same bits whatever stands beside it.
        """
        ids, mask, cut = self.tokenizer(captions)
        spare = -len(captions) % TEXT_CHUNK
        empty, empty_mask, _ = self.tokenizer([""])
        ids, mask_all = torch.cat([ids, empty.expand(spare, -1)]), torch.cat([mask, empty_mask.expand(spare, -1)])
        tokens, embeddings = (
            [ids.new_zeros(0, ids.shape[1], self.config.text_tower.width, dtype=torch.float32)],
            [torch.zeros(0, self.config.embedding)],
        )
        for start in range(0, len(ids), TEXT_CHUNK):
            rows = slice(start, start + TEXT_CHUNK)
            with torch.no_grad():
                states, embedding = self.model.text(ids[rows], mask_all[rows], trim=False)
            tokens.append(states)
            embeddings.append(F.normalize(embedding, dim=-1))
        count = len(captions)
        return torch.cat(tokens)[:count], mask, torch.cat(embeddings)[:count], cut

    def digest(self) -> str:
        """sha256 over the weights and the tokenizer."""
        total = hashlib.sha256(self.tokenizer.json_text.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            total.update(name.encode())
            total.update(tensor.detach().float().contiguous().numpy().tobytes())
        return total.hexdigest()

    def save(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        """Writes the folder that `load_dual_encoder` reads; `dtype` float16 takes half the space."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.to(dtype).contiguous() for name, tensor in self.model.state_dict().items()}
        safetensors.torch.save_file(weights, directory / WEIGHTS)
        description = {"config": self.config.model_dump(mode="json"), "tokenizer": self.tokenizer.json_text}
        (directory / DESCRIPTION).write_text(json.dumps(description))


def load_dual_encoder(path: Path) -> FrozenDualEncoder:
    """Reads a run of `t2i train align`, or a folder that `FrozenDualEncoder.save` wrote.

    Raises:
        InputError: `path` is neither, or its checkpoints are damaged.
    """
    try:
        return _read(path)
    except (ValidationError, KeyError, json.JSONDecodeError, SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            f"the dual encoder at {path} is damaged ({reason}); train it again: t2i train align"
        ) from error


def _read(path: Path) -> FrozenDualEncoder:
    if (path / DESCRIPTION).is_file():
        description = json.loads((path / DESCRIPTION).read_text())
        weights = {name: tensor.float() for name, tensor in safetensors.torch.load_file(path / WEIGHTS).items()}
        config = Config.model_validate(description["config"])
        return FrozenDualEncoder(
            config, CaptionTokenizer(description["tokenizer"], config.text_tower.max_tokens), weights
        )
    if not (path / TOKENIZER).is_file():
        raise InputError(
            f"{path} is no dual encoder: it holds neither {DESCRIPTION} nor {TOKENIZER}; train one: t2i train align"
        )
    newest = checkpoint.latest(path / "checkpoints")
    if newest is None:
        raise InputError(
            f"the align run {path} has no intact checkpoint yet; run `t2i train align --run-dir {path}` to its end"
        )
    state, manifest = checkpoint.load(newest)
    config = Config.model_validate(manifest["config"])
    tokenizer = CaptionTokenizer((path / TOKENIZER).read_text(), config.text_tower.max_tokens)
    return FrozenDualEncoder(config, tokenizer, state["model"])
