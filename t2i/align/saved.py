"""A dual encoder on disk: a training run, or a folder of `dual_encoder.json` and `model.safetensors`."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from t2i import checkpoint
from t2i.align.config import Config
from t2i.align.model import DualEncoder
from t2i.align.tokenizer import CaptionTokenizer
from t2i.errors import InputError
from t2i.images import ImageArray, to_model

DESCRIPTION, WEIGHTS, TOKENIZER = "dual_encoder.json", "model.safetensors", "tokenizer.json"
CHUNK = 256


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
        out = []
        for start in range(0, len(captions), CHUNK):
            ids, mask, _ = self.tokenizer(captions[start : start + CHUNK])
            with torch.no_grad():
                out.append(self.model.embed_text(ids, mask))
        return torch.cat(out)

    def digest(self) -> str:
        """sha256 over the weights and the tokenizer."""
        total = hashlib.sha256(self.tokenizer.json_text.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            total.update(name.encode())
            total.update(tensor.detach().float().contiguous().numpy().tobytes())
        return total.hexdigest()

    def save(self, directory: Path) -> None:
        """Writes the folder that `load_dual_encoder` reads."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        safetensors.torch.save_file(weights, directory / WEIGHTS)
        description = {"config": self.config.model_dump(mode="json"), "tokenizer": self.tokenizer.json_text}
        (directory / DESCRIPTION).write_text(json.dumps(description))


def load_dual_encoder(path: Path) -> FrozenDualEncoder:
    """Reads a run of `t2i train align`, or a folder that `FrozenDualEncoder.save` wrote.

    Raises:
        InputError: `path` is neither, or its checkpoints are damaged.
    """
    if (path / DESCRIPTION).is_file():
        description = json.loads((path / DESCRIPTION).read_text())
        weights = {name: tensor.float() for name, tensor in safetensors.torch.load_file(path / WEIGHTS).items()}
        config = Config.model_validate(description["config"])
        return FrozenDualEncoder(config, CaptionTokenizer(description["tokenizer"], config.text_tower.max_tokens), weights)
    if not (path / TOKENIZER).is_file():
        raise InputError(f"{path} is no dual encoder: it holds neither {DESCRIPTION} nor {TOKENIZER}; train one: t2i train align")
    newest = checkpoint.latest(path / "checkpoints")
    if newest is None:
        raise InputError(f"the align run {path} has no intact checkpoint yet; run `t2i train align --run {path}` to its end")
    state, manifest = checkpoint.load(newest)
    config = Config.model_validate(manifest["config"])
    tokenizer = CaptionTokenizer((path / TOKENIZER).read_text(), config.text_tower.max_tokens)
    return FrozenDualEncoder(config, tokenizer, state["model"])
