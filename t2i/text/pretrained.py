"""Transformers as frozen text encoders, from a local folder or a hub id.

Each pools its token states into one vector by its own rule:

- `clip`: the projected embedding at the EOS token, which CLIP score compares (not normalised here); when the weights
  have no projection, the final-LayerNorm state at that token.
- `t5` (T5, mT5, UMT5): the encoder alone; mean of the token states under the mask.
- `bert` (BERT, RoBERTa, XLM-R, CamemBERT, DistilBERT, MPNet, ELECTRA): the same mean, and not BERT's pooler: that is
  trained for next-sentence prediction, is a poor sentence vector (Reimers & Gurevych, EMNLP 2019), and masked-language
  checkpoints have none.
- `gpt2`: the state of the last real token: attention is causal, only that one has read the whole caption.

A folder of sentence-transformers brings its own rule, length limit and case, which are kept to.

tokens_BTD are the last layer's states after its final norm, special tokens included; rows of padding are zero. Batches
are padded on the right to one of a few lengths and to a fixed number of rows: a caption's features are its own alone.
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
    load_config,
    load_model,
    load_text_tokenizer,
    open_folder,
    save_copies,
)
from t2i.tensors import hash_bytes
from t2i.text import SAVED, Saved, TextConfig, TextFeatures, read_saved, writing
from t2i.text.pooling import POOLINGS
from t2i.text.sentences import read_rules

DEFAULT_TOKENS = 77  # CLIP's limit; captions are short, and 512 token states a caption would fill the disk
ROWS = {"cpu": 8, "cuda": 64}  # captions in one forward pass


class ReadingRules(NamedTuple):
    """Rules for reading and pooling captions."""

    max_tokens: int
    # keys of POOLINGS, joined, `unit` last where the result is normalised; empty: its own
    pooling: tuple[str, ...] = ()
    lower_case: bool = False


class _SavedTower(Saved):
    pooling: tuple[str, ...] = ()
    lower_case: bool = False


class _Pretrained:
    """The part that all share. It is no nn.Module, so no `train()` or optimiser of a model that holds it reaches the tower."""

    name: str
    model_types: dict[str, str]  # `model_type` in config.json -> class of transformers
    decisive: tuple[str, ...]  # config keys that change the features and no weight's shape; part of the digest
    pooling: str  # changes when the code below gives other features from the same weights; part of the digest

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
        """Moves the tower; features come back to the CPU all the same."""
        self.tower.to(device)
        return self

    @classmethod
    def fit(cls, config: TextConfig, captions: Sequence[str]) -> Self:
        """Loads `config.path`; nothing is fitted, `captions` are not read.

        Raises:
            InputError: no path, no usable model there, or a `max_tokens` that the model cannot read.
        """
        if config.path is None:
            raise InputError(
                f"text.encoder={cls.name} needs text.path: a folder that holds {HOLDS}, or a hub id; or take an "
                "encoder that needs none (bow, tfidf, word2vec)"
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
        reader = next((one.name for one in _Pretrained.__subclasses__() if found in one.model_types), None)
        known = "; ".join(f"{one.name}: {', '.join(one.model_types)}" for one in _Pretrained.__subclasses__())
        advice = f"set text.encoder={reader}" if reader else f"set text.encoder to one that is read ({known})"
        return f"not {cls.name}; {advice}, or name another folder"

    @classmethod
    def _load_tower(cls, folder: ModelFolder) -> tuple[Any, Any]:
        """Loads the tower in float32 and its tokenizer."""
        import transformers

        class_name = cls.model_types[folder.config["model_type"]]
        takes = inspect.signature(getattr(transformers, class_name).__init__).parameters
        # eager: scaled_dot_product_attention takes another way, with other last bits, where no caption of a batch is padded
        options: dict[str, Any] = {"attn_implementation": "eager"}
        if "add_pooling_layer" in takes:
            options["add_pooling_layer"] = False
        tower, _ = load_model(folder, class_name, **options)
        return tower, load_text_tokenizer(folder, tower)

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """Returns features [B, T, D], [B, T], [B, P] of captions, float32 on the CPU.

        Captions over `max_tokens` are cut by the tokenizer, which keeps the closing special token; one warning counts
        them. A caption without tokens (GPT-2's empty one) is read as the padding token alone, which is its end-of-text.
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
        """Returns ids [B, T], mask [B, T], and how many captions were cut."""
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
        with torch.autocast(ids_BT.device.type, enabled=False):  # float32 also inside a training step in bf16
            return self.read(ids_BT, mask_BT)

    def read(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Returns token states, those of padding too, and the pooled vector of ids on the tower's device."""
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
        """True where captions are read in lower case, beside what the tokenizer does."""
        return self.reading.lower_case

    def pooled_of(self, ids_B: Tensor) -> Tensor:
        """Returns the pooled vectors [B, P] of single tokens, each read alone between the special tokens."""
        framed, plain = (self.tokenizer("a", add_special_tokens=which)["input_ids"] for which in (True, False))
        before = framed[: framed.index(plain[0])]
        after = framed[len(before) + len(plain) :]
        ids_BT = torch.tensor([[*before, token, *after] for token in ids_B.tolist()])
        return self._forward(ids_BT.to(self.device), torch.ones_like(ids_BT, dtype=torch.bool).to(self.device))[1].cpu()

    def digest(self) -> str:
        """Returns the sha256 of the weights, the decisive config keys, the tokenizer, the length limit and the pooling rule."""
        keys, kind = self.decisive, self._config.model_type
        if kind not in ("clip_text_model", "t5", "bert", "gpt2"):  # RoBERTa has BERT's weights and other positions
            keys = (*keys, "model_type", "pad_token_id", "activation")
        decisive = {key: getattr(self._config, key, None) for key in keys}
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for key in ("padding", "truncation"):  # traces of the last call
            tokenizer.pop(key, None)
        _, rules, lower_case = self.reading
        pooling = "+".join([*rules, *["lower"] * lower_case]) + "/1" if rules or lower_case else self.pooling
        head = [self.name, pooling, self.max_tokens, decisive, tokenizer, self.tokenizer.pad_token_id]
        sha = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        hash_bytes(sha, self.tower.state_dict())
        return sha.hexdigest()

    def save(self, directory: Path) -> None:
        """Writes encoder.json and a copy of tower and tokenizer into `directory/tower`."""
        _, rules, lower_case = self.reading
        saved = _SavedTower(encoder=self.name, max_tokens=self.max_tokens, pooling=rules, lower_case=lower_case)
        with writing(directory):
            save_copies(directory / "tower", self.tower, self.tokenizer)
            (directory / SAVED).write_text(saved.model_dump_json(exclude_defaults=True), encoding="utf-8")


class CLIPText(_Pretrained):
    """The text tower of CLIP (Radford et al., ICML 2021), from a whole CLIP model or from the text tower alone."""

    name = "clip"
    model_types = dict.fromkeys(("clip", "clip_text_model"), "CLIPTextModelWithProjection")
    decisive = ("num_attention_heads", "hidden_act", "layer_norm_eps", "eos_token_id")
    pooling = "eos/1"

    def __init__(self, tower: nn.Module, tokenizer: Any, reading: ReadingRules):
        super().__init__(tower, tokenizer, reading._replace(pooling=()))
        self._is_projected = hasattr(tower, "text_projection")
        if self._is_projected:
            self.pooled_dim = self._config.projection_dim

    @classmethod
    def _load_tower(cls, folder: ModelFolder) -> tuple[Any, Any]:
        config = load_config(folder)
        if config.model_type == "clip":  # the projection's size is at the top; the text part may hold another
            config.text_config.projection_dim = config.projection_dim
            config = config.text_config
        projection = "text_projection.weight"
        class_name = cls.model_types["clip"]
        tower, missing = load_model(folder, class_name, [projection], config=config, attn_implementation="eager")
        tower = tower.text_model if missing else tower
        return tower, load_text_tokenizer(folder, tower)

    def _pool(self, output: Any, mask_BT: Tensor) -> Tensor:
        return output.text_embeds if self._is_projected else output.pooler_output


class T5Text(_Pretrained):
    """The encoder of T5 (Raffel et al., JMLR 2020; v1.1, Flan, mT5 and UMT5 too); the decoder is not loaded."""

    name = "t5"
    model_types = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
    decisive = (
        "num_heads", "relative_attention_num_buckets", "relative_attention_max_distance", "feed_forward_proj",
        "layer_norm_epsilon",
    )  # fmt: skip
    pooling = "mean/1"


class BertText(_Pretrained):
    """BERT (Devlin et al., NAACL 2019) and its kin."""

    name = "bert"
    model_types = {
        "bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel", "camembert": "CamembertModel",
        "distilbert": "DistilBertModel", "mpnet": "MPNetModel", "electra": "ElectraModel",
    }  # fmt: skip
    decisive = ("num_attention_heads", "hidden_act", "layer_norm_eps")
    pooling = "mean/1"


class GPT2Text(_Pretrained):
    """GPT-2 (Radford et al., 2019). Padding on the right leaves positions and, attention being causal, states alone."""

    name = "gpt2"
    model_types = {"gpt2": "GPT2Model"}
    decisive = (
        "num_attention_heads", "activation_function", "layer_norm_epsilon", "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
    )  # fmt: skip
    pooling = "last/1"


def load_tower(path: str) -> _Pretrained:
    """Returns the encoder that reads the tower at a path, whichever kind it is.

    Raises:
        InputError: no folder, hub id or tower that is read here.
    """
    label = f"text.path={path!r}"
    root = find_folder(path, label)
    rules = read_rules(root)
    kinds = {kind: reader for reader in _Pretrained.__subclasses__() for kind in reader.model_types}
    known = "; ".join(f"{reader.name}: {', '.join(reader.model_types)}" for reader in _Pretrained.__subclasses__())
    folder = open_folder(rules.tower if rules else root, label, kinds, lambda found: f"none of {known}; name another")
    reader = kinds[folder.config["model_type"]]
    return reader.fit(TextConfig.model_validate({"encoder": reader.name, "path": path}), [])


def _limit(config: Any) -> int | None:
    """Returns the most tokens that a tower reads; None: relative positions, no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit and config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return limit - config.pad_token_id - 1  # their positions are counted from there
    return limit
