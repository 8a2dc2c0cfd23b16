"""The encoder `static`: one vector per token, distilled from a text tower by one forward pass over its vocabulary.

As in Model2Vec (Tulkens & van Dongen, 2024), the tower encodes each token alone, between the special tokens; the pooled vectors
are projected to their first principal components and weighted by the rarity of the token in the training captions. The features
of a caption are the vectors of its tokens; the pooled vector is their mean, of unit length. No transformer is needed after the
distillation, the table takes a few MB, and words that no training caption has are close to words with the same meaning.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError, warn_truncated
from t2i.files import at_home, open_regular, read_regular
from t2i.names import brief
from t2i.text import SAVED, Saved, TextConfig, TextFeatures, read_saved, writing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_WIDTH = 128
FEWEST_TOKENS, MOST_TOKENS = 16, 77  # bounds of the default T, the length of the longest training caption
_AT_ONCE = 256  # tokens in one forward pass
# these are more frequent in prompts than in some data sets' captions, so they count as if half of the captions had them
_FUNCTION_WORDS = "a an the this that my your some of in on at to for from by with and or is are".split()
_VECTORS, _TOKENIZER = "vectors.safetensors", "tokenizer.json"

Matrix = NDArray[np.float32]


class StaticText:
    """A table of vectors for the tokens of a tower's tokenizer, without special and unknown tokens."""

    name = "static"

    def __init__(self, tokenizer: "Tokenizer", vectors_VD: NDArray[np.float16], max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.token_dim = self.pooled_dim = vectors_VD.shape[1]
        self._vectors_VD = vectors_VD
        self._known_V: NDArray[np.bool_] = np.asarray((vectors_VD != 0).any(axis=1))

    @classmethod
    def fit(cls, config: TextConfig, captions: Sequence[str]) -> Self:
        """Distils the tower at `config.path`, or loads a table that an earlier run saved.

        Raises:
            InputError: there is no path, no usable tower or table there, or no word in the captions.
        """
        if config.path is None:
            raise InputError(
                "text.encoder=static needs text.path: a text tower of transformers to distil (e.g. BERT or T5), or the folder "
                "`text` of a run with text.encoder=static"
            )
        root = at_home(config.path)
        if (root / SAVED).is_file():
            saved = cls.load(root)
            if config.width not in (None, saved.token_dim):
                raise InputError(f"text.width={config.width}, but the table {root} has {saved.token_dim}; remove it")
            return cls(saved.tokenizer, saved._vectors_VD, config.max_tokens or saved.max_tokens)
        tokenizer, states_VP = _read_vocabulary(config)
        tokens = [_ids(tokenizer, caption) for caption in captions]
        if config.width is not None and config.width > states_VP.shape[1]:
            raise InputError(
                f"text.width={config.width}, but the states of {root} have only {states_VP.shape[1]} dimensions; lower it"
            )
        vectors_VD = principal(states_VP, config.width or DEFAULT_WIDTH) * _rarity(tokens, tokenizer)[:, None]
        longest = min(MOST_TOKENS, max([FEWEST_TOKENS, *map(len, tokens)]))
        return cls(tokenizer, vectors_VD.astype(np.float16), config.max_tokens or longest)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Loads a folder that `save` wrote."""
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        saved = read_saved(directory, Saved)
        path = directory / _VECTORS
        try:
            open_regular(path).close()
            vectors_VD = load_file(path)["vectors"]
            tokenizer = Tokenizer.from_str(read_regular(directory / _TOKENIZER).decode())
        # tokenizers raises a plain Exception for a damaged file
        except Exception as error:
            reason = brief(error, 80)
            raise InputError(f"cannot read the text table in {directory} ({reason}); save the run again") from error
        if vectors_VD.ndim != 2 or vectors_VD.dtype != np.float16 or len(vectors_VD) < tokenizer.get_vocab_size():
            raise InputError(f"{path} does not fit {_TOKENIZER} in the same folder; save the run again")
        if not np.isfinite(vectors_VD).all():
            raise InputError(f"{path} has vectors that are not finite; save the run again")
        return cls(tokenizer, vectors_VD, saved.max_tokens)

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """Returns features [B, T, D], [B, T], [B, D]; a caption without known tokens has one row of zeros with mask True."""
        import torch

        tokens_BTD = np.zeros((len(captions), self.max_tokens, self.token_dim), np.float32)
        mask_BT = np.zeros((len(captions), self.max_tokens), bool)
        mask_BT[:, 0] = True
        pooled_BD = np.zeros((len(captions), self.pooled_dim), np.float32)
        truncated = 0
        for i, caption in enumerate(captions):
            ids = [token for token in _ids(self.tokenizer, caption) if self._known_V[token]]
            truncated += len(ids) > self.max_tokens
            rows_TD = self._vectors_VD[ids[: self.max_tokens]].astype(np.float32)
            if len(rows_TD):
                tokens_BTD[i, : len(rows_TD)], mask_BT[i, : len(rows_TD)] = rows_TD, True
                mean_D = rows_TD.mean(axis=0, dtype=np.float64)
                pooled_BD[i] = mean_D / max(float(np.linalg.norm(mean_D)), 1e-12)
        warn_truncated(truncated, self.name, self.max_tokens)
        return TextFeatures(torch.from_numpy(tokens_BTD), torch.from_numpy(mask_BT), torch.from_numpy(pooled_BD))

    def digest(self) -> str:
        """Returns the SHA-256 of the name, the tokenizer, the vectors and the length limit."""
        head = json.dumps([self.name, "static/1", self.max_tokens, json.loads(self.tokenizer.to_str())], sort_keys=True)
        return hashlib.sha256(head.encode() + np.ascontiguousarray(self._vectors_VD, "<f2").tobytes()).hexdigest()

    def save(self, directory: Path) -> None:
        """Writes encoder.json, tokenizer.json and vectors.safetensors."""
        from safetensors.numpy import save

        with writing(directory):
            (directory / _VECTORS).write_bytes(save({"vectors": np.ascontiguousarray(self._vectors_VD)}))
            (directory / _TOKENIZER).write_text(self.tokenizer.to_str(), encoding="utf-8")
            saved = Saved(encoder=self.name, max_tokens=self.max_tokens)
            (directory / SAVED).write_text(saved.model_dump_json(), encoding="utf-8")


def principal(states_VP: Matrix, width: int) -> Matrix:
    """Projects centred rows to their first `width` principal components; rows of zeros stay zero.

    Args:
        width: number of components; fewer are returned if the matrix has fewer.
    """
    known_V = states_VP.any(axis=1)
    centred_VP = states_VP[known_V].astype(np.float64)
    centred_VP -= centred_VP.mean(axis=0)
    _, directions_PP = np.linalg.eigh(centred_VP.T @ centred_VP)
    axes_PD = directions_PP[:, ::-1][:, :width]
    # the sign of an eigenvector is arbitrary, so its largest entry is made positive
    axes_PD = axes_PD * np.sign(axes_PD[np.abs(axes_PD).argmax(axis=0), np.arange(axes_PD.shape[1])])
    projected_VD = np.zeros((len(states_VP), axes_PD.shape[1]))
    projected_VD[known_V] = centred_VP @ axes_PD
    return projected_VD.astype(np.float32)


def _rarity(captions: Sequence[Sequence[int]], tokenizer: "Tokenizer") -> Matrix:
    """Returns the smoothed inverse document frequency of each token, scaled to 1 for tokens that no caption has."""
    size = tokenizer.get_vocab_size()
    captions_with: Counter[int] = Counter(token for tokens in captions for token in set(tokens))
    if not captions_with:
        raise InputError("text.encoder=static found no word in the captions; check the data")
    counts_V = np.array([captions_with[token] for token in range(size)])
    common = [ids[0] for word in _FUNCTION_WORDS if len(ids := _ids(tokenizer, word)) == 1]
    counts_V[common] = np.maximum(counts_V[common], len(captions) / 2)
    idf_V = np.log((len(captions) + 1) / (counts_V + 1)) + 1
    return (idf_V / (np.log(len(captions) + 1) + 1)).astype(np.float32)


def _ids(tokenizer: "Tokenizer", caption: str) -> list[int]:
    return tokenizer.encode(caption, add_special_tokens=False).ids


def _read_vocabulary(config: TextConfig) -> tuple["Tokenizer", Matrix]:
    """Returns the tokenizer of a tower and the pooled vector of each token alone, zeros for special tokens."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as Both

    from t2i.text.towers import load_tower

    tower = load_tower(str(config.path))
    settings: dict[str, Any] = json.loads(tower.tokenizer.backend_tokenizer.to_str())
    settings |= {"padding": None, "truncation": None, "post_processor": None}
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    if tower.lower_case:
        tokenizer.normalizer = Both([Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])])
    special = set(tower.tokenizer.all_special_ids)
    ids = [token for token in range(tokenizer.get_vocab_size()) if token not in special]
    states_VP = np.zeros((tokenizer.get_vocab_size(), tower.pooled_dim), np.float32)
    for start in range(0, len(ids), _AT_ONCE):
        batch = ids[start : start + _AT_ONCE]
        states_VP[batch] = tower.pooled_of(torch.tensor(batch)).numpy()
    return tokenizer, states_VP
