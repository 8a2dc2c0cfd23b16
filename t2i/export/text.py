"""Exports text encoders as graphs from ids to features, with a tokenizer from captions to ids.

Axes: B captions, T tokens, V words, D width, P pooled.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.align.mapped import MappedDualEncoder, Projections
from t2i.errors import InputError
from t2i.export.graphs import Graph
from t2i.text import TextEncoder

OUTPUTS = ("tokens", "pooled")
WORDS_RULE = "lower case; words are matches of \\w+(?:['\\u2019]\\w+)*; words without an id are skipped"
PAIRS_RULE = (
    "NFC and lower case, a space before; split as GPT-2 does; bytes as its printable letters; merges by rank; start before, end "
    "after, cut to max_tokens"
)
TOKENIZER_RULE = "the library `tokenizers` reads the file; cut to max_tokens with its closing special token kept"


class TextPart(NamedTuple):
    """A text encoder that can be exported."""

    graph: Graph  # ids and mask -> tokens and pooled
    tokenize: Callable[[Sequence[str]], tuple[Tensor, Tensor]]  # (ids_BT, mask_BT)
    described: dict[str, Any]  # entry of the manifest
    file: str  # content of the tokenizer's JSON file


def text_part(encoder: TextEncoder, examples: Sequence[str]) -> TextPart:
    """Returns the graph and the tokenizer of a text encoder.

    Args:
        examples: captions for the example inputs of the graph.

    Raises:
        InputError: this encoder cannot be exported.
    """
    if encoder.name not in TEXTS:
        raise InputError(f"the text encoder {encoder.name} cannot be exported; {', '.join(TEXTS)} can")
    return TEXTS[encoder.name](encoder, examples)


class WordTable(nn.Module):
    """Rows of a table; pooled: their mean, or the weighted word counts at unit length. Padding is the last row, all zeros."""

    def __init__(self, rows_VD: np.ndarray, weights_V: np.ndarray | None) -> None:
        super().__init__()
        self.register_buffer("rows", torch.from_numpy(np.pad(rows_VD, ((0, 1), (0, 0)))))
        weights = None if weights_V is None else torch.from_numpy(weights_V).float()
        self.register_buffer("weights", weights)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        rows, weights = cast(Tensor, self.rows), cast(Tensor | None, self.weights)
        known = (mask & (ids < rows.shape[0] - 1)).float()
        tokens = rows[ids] * known[..., None]
        if weights is None:
            return tokens, tokens.sum(dim=1) / known.sum(dim=1, keepdim=True).clamp(min=1)
        counts = ((ids[..., None] == torch.arange(rows.shape[0])).float() * known[..., None]).sum(dim=1)[:, :-1]
        return tokens, F.normalize(counts * weights, dim=1)


def _words(encoder: Any, examples: Sequence[str]) -> TextPart:
    unknown, length = len(encoder.vocabulary), encoder.max_tokens

    def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = torch.full((len(captions), length), unknown)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        mask[:, 0] = True
        for i, caption in enumerate(captions):
            rows = encoder.rows_of(caption)[:length]
            ids[i, : len(rows)], mask[i, : len(rows)] = torch.tensor(rows, dtype=torch.long), True
        return ids, mask

    described = {"kind": "words", "rule": WORDS_RULE, "max_tokens": length, "pad": unknown}
    words = {word: row for row, word in enumerate(encoder.vocabulary)}
    module = WordTable(encoder.rows_VD, getattr(encoder, "weights_V", None))
    return _part(module, tokenize, examples, described, json.dumps({"words": words}, ensure_ascii=False))


class AlignedTextGraph(nn.Module):
    """The text tower of a dual encoder; the pooled vector has unit length."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens, embedding = self.tower(ids, mask, trim=False)
        return tokens, F.normalize(embedding, dim=-1)


def _aligned(encoder: Any, examples: Sequence[str]) -> TextPart:
    if isinstance(encoder.dual, MappedDualEncoder):
        return _mapped(encoder, examples)
    tokenizer = encoder.dual.tokenizer

    def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return tokenizer(captions, encoder.max_tokens)[:2]

    special = {"pad": tokenizer.PAD, "start": tokenizer.START, "end": tokenizer.END}
    described = {"kind": "byte-pairs", "rule": PAIRS_RULE, "max_tokens": encoder.max_tokens, **special}
    return _part(AlignedTextGraph(encoder.dual.model.text), tokenize, examples, described, tokenizer.json_text)


class MappedTextGraph(nn.Module):
    """A frozen text encoder, and its maps into the space that an aligner found."""

    def __init__(self, inner: nn.Module, projections: Projections) -> None:
        super().__init__()
        self.inner, self.projections = inner, projections

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens, pooled = self.inner(ids, mask)
        return self.projections.tokens(tokens, mask), self.projections.text(pooled)


def _mapped(encoder: Any, examples: Sequence[str]) -> TextPart:
    dual = encoder.dual
    if encoder.max_tokens != dual.max_tokens:
        raise InputError(
            f"text.max_tokens={encoder.max_tokens} cuts captions behind the aligned encoder, which reads {dual.max_tokens}; a "
            "model that is to be exported is trained without it"
        )
    part = text_part(dual.encoder, examples)
    module = MappedTextGraph(part.graph.module, dual.projections)
    return part._replace(graph=part.graph._replace(module=module))


class PretrainedTextGraph(nn.Module):
    """A tower of transformers with its pooling."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.tower, self.read = encoder.tower, encoder.read

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states, pooled = self.read(ids, mask)
        return states * mask[:, :, None], pooled


def _pretrained(encoder: Any, examples: Sequence[str]) -> TextPart:
    described = {
        "kind": "tokenizer",
        "rule": TOKENIZER_RULE,
        "max_tokens": encoder.max_tokens,
        "pad": encoder.tokenizer.pad_token_id,
        "lower_case": encoder.reading.lower_case,
    }

    def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return encoder.tokenize(list(captions))[:2]

    return _part(
        PretrainedTextGraph(encoder), tokenize, examples, described, encoder.tokenizer.backend_tokenizer.to_str()
    )


def _part(
    module: nn.Module,
    tokenize: Callable[[Sequence[str]], tuple[Tensor, Tensor]],
    examples: Sequence[str],
    described: dict[str, Any],
    file: str,
) -> TextPart:
    ids, mask = tokenize(examples)
    return TextPart(Graph(module, {"ids": ids, "mask": mask}, OUTPUTS), tokenize, described, file)


# name of the encoder -> function that returns its part
TEXTS: dict[str, Callable[[Any, Sequence[str]], TextPart]] = {
    "aligned": _aligned,
    **dict.fromkeys(("bow", "tfidf", "word2vec"), _words),
    **dict.fromkeys(("clip", "t5", "bert"), _pretrained),
}
