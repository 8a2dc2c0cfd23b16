"""Frozen text encoders from transformers, in a local folder or on the hub; `t2i.text.towers` lists the supported models.

Each kind of model has its rule for pooling token states:

- `clip`: the projected embedding at the EOS token, as in the CLIP score (not normalised here); if the weights have no
  projection, the state at that token after the final LayerNorm.
- `t5` (T5, mT5, UMT5): the mean of the encoder's token states under the mask.
- `bert` (BERT, RoBERTa, XLM-R, CamemBERT, DistilBERT, MPNet, ELECTRA): the same mean instead of BERT's pooler, which is trained
  for next-sentence prediction, gives poor sentence vectors (Reimers & Gurevych, EMNLP 2019), and is missing in masked-language
  checkpoints.
- `gpt2`: the state of the last real token, since attention is causal and only this token attends to the whole caption.

The pooling rule, length limit and case of a sentence-transformers folder are followed.

tokens_BTD are the last layer's states after its final norm, including special tokens; rows of padding are zero. Batches are
padded on the right to one of a few lengths and to a fixed number of rows, so that the features of a caption do not depend on
the others.
"""

import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.align.tokenizer import length_batches
from t2i.errors import InputError, warn_truncated
from t2i.pretrained import (
    HOLDS,
    ModelFolder,
    find_folder,
    load_model,
    load_text_tokenizer,
    open_folder,
    save_copies,
)
from t2i.tensors import hash_bytes
from t2i.text import SAVED, Saved, TextConfig, TextFeatures, read_saved, writing
from t2i.text.pooling import POOLINGS
from t2i.text.sentences import read_rules

DEFAULT_TOKENS = 77  # CLIP's limit; captions are short, and 512 token states per caption would fill the disk
ROWS = {"cpu": 8, "cuda": 64}  # captions in one forward pass


class ReadingRules(NamedTuple):
    """Rules for reading and pooling captions."""

    max_tokens: int
    # keys of POOLINGS, whose vectors are concatenated, and `unit` at the end to normalise; empty: the model's rule
    pooling: tuple[str, ...] = ()
    lower_case: bool = False


class _SavedTower(Saved):
    pooling: tuple[str, ...] = ()
    lower_case: bool = False


class PretrainedText:
    """Base class of the towers. It is not an nn.Module, so that `train()` and optimisers of a model do not affect the tower."""

    name: str
    model_types: dict[str, str]  # `model_type` in config.json -> class of transformers
    decisive: tuple[str, ...]  # config keys that affect features but not the shapes of weights; part of the digest
    pooling: str  # rule and version of the code below; part of the digest

    def __init__(self, tower: nn.Module, tokenizer: Any, reading: ReadingRules):
        self.tower = tower
        self.tokenizer = tokenizer
        self.reading = reading
        self.max_tokens = reading.max_tokens
        self.token_dim: int = self._config.hidden_size
        self.pooled_dim: int = self.token_dim * max(1, len(set(reading.pooling) - {"unit"}))

    @property
    def _config(self) -> Any:
        return self.tower.config

    @property
    def device(self) -> torch.device:
        return next(self.tower.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Moves the tower; features are still returned on the CPU."""
        self.tower.to(device)
        return self

    @classmethod
    def fit(cls, config: TextConfig, captions: Sequence[str]) -> Self:
        """Loads the model at `config.path`; the captions are not used.

        Raises:
            InputError: there is no path or no usable model there, or `max_tokens` is out of the model's range.
        """
        if config.path is None:
            raise InputError(
                f"text.encoder={cls.name} needs text.path: a folder that holds {HOLDS}, or a hub id; or use an encoder that "
                "needs none (bow, tfidf, word2vec)"
            )
        label = f"text.path={config.path!r}"
        root = find_folder(config.path, label)
        rules = read_rules(root)
        folder = open_folder(rules.tower if rules else root, label, cls.model_types, cls._advice)
        tower, tokenizer = cls._load_tower(folder)
        limit, default = _limit(tower.config), DEFAULT_TOKENS
        if rules is not None:
            default = rules.max_tokens or limit or DEFAULT_TOKENS
            limit = min(rules.max_tokens, limit or rules.max_tokens) if rules.max_tokens else limit
        tokens = config.max_tokens or min(default, limit or default)
        fewest = tokenizer.num_special_tokens_to_add() + 1
        if tokens < fewest or (limit and tokens > limit):
            upper = f"to {limit}" if limit else "or more"
            raise InputError(f"text.max_tokens={tokens} does not fit {label}, which reads {fewest} {upper} tokens")
        reading = ReadingRules(tokens, rules.pooling, rules.lower_case) if rules else ReadingRules(tokens)
        return cls(tower, tokenizer, reading)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Loads a folder that `save` wrote."""
        saved = read_saved(directory, _SavedTower)
        if wrong := set(saved.pooling) - {*POOLINGS, "unit"}:
            raise InputError(f"{directory / SAVED} names the pooling {min(wrong)!r}; save the run again")
        label = f"the text tower {directory / 'tower'}"
        tower, tokenizer = cls._load_tower(open_folder(directory / "tower", label, cls.model_types, cls._advice))
        return cls(tower, tokenizer, ReadingRules(saved.max_tokens, saved.pooling, saved.lower_case))

    @classmethod
    def _advice(cls, found: str) -> str:
        reader = next((one.name for one in PretrainedText.__subclasses__() if found in one.model_types), None)
        known = "; ".join(f"{one.name}: {', '.join(one.model_types)}" for one in PretrainedText.__subclasses__())
        advice = f"set text.encoder={reader}" if reader else f"supported are {known}"
        return f"not {cls.name}; {advice}, or name another folder"

    @classmethod
    def _load_tower(cls, folder: ModelFolder) -> tuple[Any, Any]:
        """Loads the tower in float32 and its tokenizer."""
        import transformers

        class_name = cls.model_types[folder.config["model_type"]]
        takes = inspect.signature(getattr(transformers, class_name).__init__).parameters
        # eager, since scaled_dot_product_attention rounds differently if no caption of a batch is padded
        options: dict[str, Any] = {"attn_implementation": "eager"}
        if "add_pooling_layer" in takes:
            options["add_pooling_layer"] = False
        tower, _ = load_model(folder, class_name, **options)
        return tower, load_text_tokenizer(folder, tower)

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """Returns features [B, T, D], [B, T], [B, P] of captions, float32 on the CPU.

        The tokenizer truncates captions to `max_tokens`, keeping the closing special token; one warning gives their number. A
        caption without tokens (possible for GPT-2) is encoded as a single padding token, which is its end-of-text.
        """
        ids_BT, mask_BT, truncated = self.tokenize(list(captions))
        warn_truncated(truncated, self.name, self.max_tokens)
        tokens_BTD = torch.zeros(len(captions), self.max_tokens, self.token_dim)
        pooled_BP = torch.zeros(len(captions), self.pooled_dim)
        for rows, count, length in length_batches(mask_BT, ROWS.get(self.device.type, ROWS["cuda"])):
            ids, mask = ids_BT[rows, :length].to(self.device), mask_BT[rows, :length].to(self.device)
            states, pooled = self._forward(ids, mask)
            tokens_BTD[rows[:count], :length] = states[:count].cpu()
            pooled_BP[rows[:count]] = pooled[:count].cpu()
        return TextFeatures(tokens_BTD.mul_(mask_BT[:, :, None]), mask_BT, pooled_BP)

    def tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor, int]:
        """Returns ids [B, T], mask [B, T], and the number of truncated captions."""
        if not captions:
            none = torch.zeros(0, self.max_tokens, dtype=torch.long)
            return none, none.bool(), 0
        if self.reading.lower_case:
            captions = [caption.lower() for caption in captions]
        whole = self.tokenizer(captions, truncation=False, verbose=False)["input_ids"]
        batch = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        mask_BT = batch["attention_mask"].bool()
        mask_BT[:, 0] = True
        return batch["input_ids"], mask_BT, sum(len(ids) > self.max_tokens for ids in whole)

    @torch.no_grad()
    def _forward(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(ids_BT.device.type, enabled=False):  # float32 even within a training step in bf16
            return self.read(ids_BT, mask_BT)

    def read(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Returns token states, including padding, and pooled vectors of ids on the tower's device."""
        output = self.tower(input_ids=ids_BT, attention_mask=mask_BT.long())
        states = output.last_hidden_state
        rules = self.reading.pooling
        if not rules:
            return states, self._pool(output, mask_BT)
        pooled = torch.cat([POOLINGS[rule](states, mask_BT) for rule in rules if rule != "unit"], dim=1)
        return states, F.normalize(pooled, dim=1) if "unit" in rules else pooled

    def _pool(self, output: Any, mask_BT: Tensor) -> Tensor:
        return POOLINGS[self.pooling.partition("/")[0]](output.last_hidden_state, mask_BT)

    @property
    def lower_case(self) -> bool:
        """True if captions are converted to lower case before the tokenizer."""
        return self.reading.lower_case

    def pooled_of(self, ids_B: Tensor) -> Tensor:
        """Returns the pooled vectors [B, P] of single tokens, each encoded alone between the special tokens."""
        framed, plain = (self.tokenizer("a", add_special_tokens=which)["input_ids"] for which in (True, False))
        before = framed[: framed.index(plain[0])]
        after = framed[len(before) + len(plain) :]
        ids_BT = torch.tensor([[*before, token, *after] for token in ids_B.tolist()])
        return self._forward(ids_BT.to(self.device), torch.ones_like(ids_BT, dtype=torch.bool).to(self.device))[1].cpu()

    def digest(self) -> str:
        """Returns the SHA-256 of the weights, the decisive config keys, the tokenizer, the length limit and the pooling rule."""
        keys, kind = self.decisive, self._config.model_type
        if kind not in ("clip_text_model", "t5", "bert", "gpt2"):  # RoBERTa has BERT's weights but other positions
            keys = (*keys, "model_type", "pad_token_id", "activation")
        decisive = {key: getattr(self._config, key, None) for key in keys}
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for key in ("padding", "truncation"):  # state of the last call
            tokenizer.pop(key, None)
        _, rules, lower_case = self.reading
        pooling = "+".join([*rules, *["lower"] * lower_case]) + "/1" if rules or lower_case else self.pooling
        head = [self.name, pooling, self.max_tokens, decisive, tokenizer, self.tokenizer.pad_token_id]
        sha = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        hash_bytes(sha, self.tower.state_dict())
        return sha.hexdigest()

    def save(self, directory: Path) -> None:
        """Writes encoder.json, and copies of tower and tokenizer to `directory/tower`."""
        _, rules, lower_case = self.reading
        saved = _SavedTower(encoder=self.name, max_tokens=self.max_tokens, pooling=rules, lower_case=lower_case)
        with writing(directory):
            save_copies(directory / "tower", self.tower, self.tokenizer)
            (directory / SAVED).write_text(saved.model_dump_json(exclude_defaults=True), encoding="utf-8")


def _limit(config: Any) -> int | None:
    """Returns the maximum number of tokens; None for relative positions, which have no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit and config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return limit - config.pad_token_id - 1  # their positions start after the padding id
    return limit
