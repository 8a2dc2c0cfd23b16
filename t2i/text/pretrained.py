"""CLIP, T5, BERT and GPT-2 as frozen text encoders, through transformers, from a local directory or a hub id.

How each pools its token states into one vector:

- `clip`: the projected embedding at the EOS token, which CLIP score compares (not normalised here); when the weights
  have no projection, the final-LayerNorm state at that token.
- `t5`: the encoder alone; mean of the token states under the mask.
- `bert`: the same mean, and not BERT's pooler: that is trained for next-sentence prediction, is a poor sentence vector
  (Reimers & Gurevych, EMNLP 2019), and masked-language checkpoints have none.
- `gpt2`: the state of the last real token: attention is causal, only that one has read the whole caption.

tokens_BTD are the last layer's states after its final norm, special tokens included; rows of padding are zero. Every
batch is padded on the right to `max_tokens` and to a fixed number of rows: a caption's features are its own alone.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from t2i.errors import InputError, warn_truncated
from t2i.pretrained import HOLDS, load_weights, quiet, read_model
from t2i.text import SAVED, Saved, TextConfig, TextFeatures, read_saved, writing

DEFAULT_TOKENS = 77  # CLIP's limit; captions are short, and 512 token states a caption would fill the disk
ROWS = {"cpu": 8, "cuda": 64}  # captions in one forward pass


class _Pretrained:
    """What the four share. Not an nn.Module: no `train()` or optimiser of a model that holds it can reach the tower."""

    name: str
    model_types: tuple[str, ...]  # of config.json
    decisive: tuple[str, ...]  # config keys that change the features and no weight's shape; part of the digest
    pooling: str  # changes when the code below gives other features from the same weights; part of the digest

    def __init__(self, tower: nn.Module, tokenizer: Any, max_tokens: int):
        self.tower = tower.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.token_dim: int = self._config.hidden_size
        self.pooled_dim: int = self.token_dim

    @property
    def _config(self) -> Any:
        return self.tower.config

    @property
    def device(self) -> torch.device:
        return next(self.tower.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Moves the tower; features come back to the CPU all the same."""
        self.tower.to(device)
        return self

    @classmethod
    def fit(cls, config: TextConfig, captions: Sequence[str]) -> Self:
        """Loads `config.path`; nothing is fitted, `captions` are not read.

        Raises:
            InputError: no path, a `max_tokens` that the model cannot read, or see `read_model`.
        """
        if config.path is None:
            raise InputError(
                f"text.encoder={cls.name} needs text.path: a folder that holds {HOLDS}, or a hub id; or take an "
                "encoder that needs none (bow, tfidf, word2vec)"
            )
        return cls._open(config.path, config.max_tokens)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """From a folder that `save` wrote."""
        return cls._open(str(directory / "tower"), read_saved(directory, Saved).max_tokens)

    @classmethod
    def _open(cls, path: str, max_tokens: int | None) -> Self:
        tower, tokenizer = read_model(os.path.expanduser(path), cls.name, cls.model_types, cls._load_tower)
        limit = getattr(tower.config, "max_position_embeddings", None)  # None: relative positions, no limit
        tokens = max_tokens or min(DEFAULT_TOKENS, limit or DEFAULT_TOKENS)
        fewest = tokenizer.num_special_tokens_to_add() + 1
        if tokens < fewest or (limit and tokens > limit):
            upper = f"to {limit}" if limit else "or more"
            raise InputError(f"text.max_tokens={tokens} does not fit {path!r}, which reads {fewest} {upper} tokens")
        return cls(tower, tokenizer, tokens)

    @classmethod
    def _load_tower(cls, path: str, config: Any) -> tuple[Any, set[str]]:
        """The tower in float32 and the names of the weights that the files lack."""
        raise NotImplementedError

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """Features of captions; [B, T, D], [B, T], [B, P], float32 on the CPU.

        Captions over `max_tokens` are cut by the tokenizer, which keeps the closing special token; one warning counts
        them. A caption without tokens (GPT-2's empty one) is read as the padding token alone, which is its end-of-text.
        """
        captions = list(captions)
        ids_BT, mask_BT, truncated = self._tokenize(captions)
        warn_truncated(truncated, self.name, self.max_tokens)
        tokens_BTD = torch.zeros(len(captions), self.max_tokens, self.token_dim)
        pooled_BP = torch.zeros(len(captions), self.pooled_dim)
        rows = ROWS.get(self.device.type, ROWS["cuda"])
        for start in range(0, len(captions), rows):
            part = slice(start, min(start + rows, len(captions)))
            # the last batch repeats its last row: matrix products of another height round differently
            filled = torch.arange(start, start + rows).clamp(max=len(captions) - 1)
            states, pooled = self._forward(ids_BT[filled].to(self.device), mask_BT[filled].to(self.device))
            count = part.stop - part.start
            tokens_BTD[part] = states[:count].cpu()
            pooled_BP[part] = pooled[:count].cpu()
        return TextFeatures(tokens_BTD.mul_(mask_BT[:, :, None]), mask_BT, pooled_BP)

    def _tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor, int]:
        """Ids [B, T], mask [B, T], and how many captions were cut."""
        if not captions:
            return (
                torch.zeros(0, self.max_tokens, dtype=torch.long),
                torch.zeros(0, self.max_tokens, dtype=torch.bool),
                0,
            )
        whole = self.tokenizer(captions, truncation=False, verbose=False)["input_ids"]
        batch = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        mask_BT = batch["attention_mask"].bool()
        mask_BT[:, 0] = True
        return batch["input_ids"], mask_BT, sum(len(ids) > self.max_tokens for ids in whole)

    @torch.no_grad()
    def _forward(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(ids_BT.device.type, enabled=False):  # float32 also inside a training step in bf16
            output = self.tower(input_ids=ids_BT, attention_mask=mask_BT.long())
        return output.last_hidden_state, self._pool(output, mask_BT)

    def _pool(self, output: Any, mask_BT: Tensor) -> Tensor:
        raise NotImplementedError

    def digest(self) -> str:
        """sha256 of the weights, the decisive config keys, the tokenizer, the length limit and the pooling rule."""
        decisive = {key: getattr(self._config, key, None) for key in self.decisive}
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for key in ("padding", "truncation"):  # traces of the last call
            tokenizer.pop(key, None)
        head = [self.name, self.pooling, self.max_tokens, decisive, tokenizer, self.tokenizer.pad_token_id]
        sha = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for key, tensor in sorted(self.tower.state_dict().items()):
            sha.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
        return sha.hexdigest()

    def save(self, directory: Path) -> None:
        """Writes encoder.json and a copy of tower and tokenizer into `directory/tower`."""
        saved = Saved(encoder=self.name, max_tokens=self.max_tokens)
        with writing(directory), quiet(bars=False):
            self.tower.save_pretrained(directory / "tower")  # pyright: ignore[reportCallIssue]
            self.tokenizer.save_pretrained(directory / "tower")
            (directory / SAVED).write_text(saved.model_dump_json(), encoding="utf-8")


class CLIPText(_Pretrained):
    """The text tower of CLIP (Radford et al., ICML 2021), from a whole CLIP model or from the text tower alone."""

    name = "clip"
    model_types = ("clip", "clip_text_model")
    decisive = ("num_attention_heads", "hidden_act", "layer_norm_eps", "eos_token_id")
    pooling = "eos/1"

    def __init__(self, tower: nn.Module, tokenizer: Any, max_tokens: int):
        super().__init__(tower, tokenizer, max_tokens)
        self._is_projected = hasattr(tower, "text_projection")
        if self._is_projected:
            self.pooled_dim = self._config.projection_dim

    @classmethod
    def _load_tower(cls, path: str, config: Any) -> tuple[Any, set[str]]:
        from transformers import CLIPTextModelWithProjection

        if config.model_type == "clip":  # the size of the projection stands at the top; the text part may hold another
            config.text_config.projection_dim = config.projection_dim
            config = config.text_config
        tower, missing = load_weights(CLIPTextModelWithProjection, path, config=config)
        if "text_projection.weight" in missing:
            return tower.text_model, missing - {"text_projection.weight"}
        return tower, missing

    def _pool(self, output: Any, mask_BT: Tensor) -> Tensor:
        return output.text_embeds if self._is_projected else output.pooler_output


class T5Text(_Pretrained):
    """The encoder of T5 (Raffel et al., JMLR 2020; v1.1 and Flan too); the decoder is not loaded."""

    name = "t5"
    model_types = ("t5",)
    decisive = (
        "num_heads", "relative_attention_num_buckets", "relative_attention_max_distance", "feed_forward_proj",
        "layer_norm_epsilon",
    )  # fmt: skip
    pooling = "mean/1"

    @classmethod
    def _load_tower(cls, path: str, config: Any) -> tuple[Any, set[str]]:
        from transformers import T5EncoderModel

        return load_weights(T5EncoderModel, path)

    def _pool(self, output: Any, mask_BT: Tensor) -> Tensor:
        return _mean(output.last_hidden_state, mask_BT)


class BertText(_Pretrained):
    """BERT (Devlin et al., NAACL 2019)."""

    name = "bert"
    model_types = ("bert",)
    decisive = ("num_attention_heads", "hidden_act", "layer_norm_eps")
    pooling = "mean/1"

    @classmethod
    def _load_tower(cls, path: str, config: Any) -> tuple[Any, set[str]]:
        from transformers import BertModel

        return load_weights(BertModel, path, add_pooling_layer=False)

    def _pool(self, output: Any, mask_BT: Tensor) -> Tensor:
        return _mean(output.last_hidden_state, mask_BT)


class GPT2Text(_Pretrained):
    """GPT-2 (Radford et al., 2019). Padding on the right leaves positions and, attention being causal, states alone."""

    name = "gpt2"
    model_types = ("gpt2",)
    decisive = (
        "num_attention_heads", "activation_function", "layer_norm_epsilon", "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
    )  # fmt: skip
    pooling = "last/1"

    @classmethod
    def _load_tower(cls, path: str, config: Any) -> tuple[Any, set[str]]:
        from transformers import GPT2Model

        return load_weights(GPT2Model, path)

    def _pool(self, output: Any, mask_BT: Tensor) -> Tensor:
        last_B = mask_BT.sum(dim=1) - 1
        return output.last_hidden_state[torch.arange(len(last_B), device=last_B.device), last_B]


def _mean(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    weights_BT1 = mask_BT[:, :, None].to(states_BTD.dtype)
    return (states_BTD * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1)
