"""Text encoders fitted to the training captions: bag of words, TF-IDF and skip-gram word vectors.

Words are runs of letters and digits in lower case; words that were not seen in fitting are skipped. A caption without a known
word has a pooled vector of zeros and one token row of zeros with mask True, so that attention never has an empty row.

- `bow`, `tfidf`: pooled = the caption's word weights (count, or count x idf), L2-normalised; P = V words, at most the
  4,096 most frequent. tokens = one row per word, in order: the word's one-hot vector times its weight, so that the rows sum to
  the pooled vector before normalisation. With V > 256 words, the rows are multiplied by a fixed Gaussian random projection to
  256 dimensions, which preserves inner products (Johnson & Lindenstrauss 1984); the direction depends on the word alone.
- `word2vec`: tokens = 128-d skip-gram vectors (Mikolov et al., NeurIPS 2013), pooled = their mean.
"""

import hashlib
import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat

from t2i import seeding
from t2i.errors import InputError, warn_truncated
from t2i.files import open_regular
from t2i.names import counted
from t2i.text import SAVED, Saved, TextConfig, TextFeatures, read_saved, split_words, writing
from t2i.text.stop_words import ENGLISH, TELLING

MAX_WORDS = 4096
MAX_TOKEN_DIM = 256
WORD2VEC_DIM = 128
# bounds of the default T, which is the length of the longest training caption
FEWEST_TOKENS, MOST_TOKENS = 16, 77

Matrix = NDArray[np.float32]
StopWords = Literal["english"] | None  # the list of words that were left out


class _SavedWords(Saved):
    stop_words: StopWords = None
    vocabulary: list[str] = Field(min_length=1)
    weights: list[FiniteFloat] | None = None  # None: word vectors are in a separate safetensors file


class _WordEncoder:
    """A table with one token row per word; subclasses fit the rows and pool a caption."""

    name: str

    def __init__(
        self, vocabulary: Sequence[str], rows_VD: Matrix, pooled_dim: int, max_tokens: int, stop_words: StopWords
    ):
        self.vocabulary = list(vocabulary)
        self.max_tokens = max_tokens
        self.stop_words: StopWords = stop_words
        self.token_dim, self.pooled_dim = rows_VD.shape[1], pooled_dim
        self.rows_VD = rows_VD
        self._row_of = {word: row for row, word in enumerate(self.vocabulary)}

    def _pool(self, rows: NDArray[np.int64]) -> Matrix:
        """Returns the pooled vector [P] of a caption with these known words, at least one."""
        raise NotImplementedError

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """Returns features [B, T, D], [B, T], [B, P] of captions; rows of padding are zero."""
        import torch

        tokens_BTD = np.zeros((len(captions), self.max_tokens, self.token_dim), dtype=np.float32)
        mask_BT = np.zeros((len(captions), self.max_tokens), dtype=bool)
        mask_BT[:, 0] = True
        pooled_BP = np.zeros((len(captions), self.pooled_dim), dtype=np.float32)
        truncated = 0
        for i, caption in enumerate(captions):
            rows = self.rows_of(caption)
            truncated += len(rows) > self.max_tokens
            rows_T = np.array(rows[: self.max_tokens], dtype=np.int64)
            if len(rows_T):
                tokens_BTD[i, : len(rows_T)] = self.rows_VD[rows_T]
                mask_BT[i, : len(rows_T)] = True
                pooled_BP[i] = self._pool(rows_T)
        warn_truncated(truncated, self.name, self.max_tokens)
        return TextFeatures(torch.from_numpy(tokens_BTD), torch.from_numpy(mask_BT), torch.from_numpy(pooled_BP))

    def rows_of(self, caption: str) -> list[int]:
        """Returns the rows of the known words of a caption, in order."""
        return [self._row_of[word] for word in split_words(caption) if word in self._row_of]

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        """Returns the words that have no row and are not stop words."""
        words = dict.fromkeys(word for caption in captions for word in split_words(caption))
        left_out = ENGLISH if self.stop_words else ()
        return [word for word in words if word not in self._row_of and word not in left_out]

    def digest(self) -> str:
        """Returns the SHA-256 of the name, the vocabulary, the token rows and the length limit."""
        head = json.dumps([self.name, "words/1", self.max_tokens, self.vocabulary])
        return hashlib.sha256(head.encode() + np.ascontiguousarray(self.rows_VD, dtype="<f4").tobytes()).hexdigest()


class _WeightedWords(_WordEncoder):
    """Word counts multiplied by a weight per word."""

    def __init__(
        self, vocabulary: Sequence[str], weights: Sequence[float], max_tokens: int, stop_words: StopWords = None
    ):
        self.weights_V = np.array(weights, dtype=np.float64)
        rows_VD = _word_rows(vocabulary, self.weights_V)
        super().__init__(vocabulary, rows_VD, len(vocabulary), max_tokens, stop_words)

    def _pool(self, rows: NDArray[np.int64]) -> Matrix:
        weighted_V = np.bincount(rows, minlength=len(self.vocabulary)) * self.weights_V
        return (weighted_V / max(float(np.linalg.norm(weighted_V)), 1e-12)).astype(np.float32)

    @classmethod
    def fit(cls, config: TextConfig, captions: Sequence[str]) -> Self:
        """Fits the vocabulary and the weights; raises InputError if the captions have no word."""
        sentences = _sentences(config, captions)
        counts: Counter[str] = Counter()
        captions_with: Counter[str] = Counter()
        for words in sentences:
            counts.update(words)
            captions_with.update(set(words))
        vocabulary = sorted(counts)
        if len(vocabulary) > MAX_WORDS:  # argsort resolves ties in the way of earlier versions
            order = (-np.array([counts[word] for word in vocabulary])).argsort()[:MAX_WORDS]
            vocabulary = [vocabulary[row] for row in np.sort(order)]
        weights = [cls._weight(captions_with[word], len(captions)) for word in vocabulary]
        return cls(vocabulary, weights, config.max_tokens or _longest(sentences), config.stop_words)

    @staticmethod
    def _weight(captions_with: int, captions: int) -> float:
        """Returns the weight of a word that occurs in `captions_with` of `captions` captions."""
        raise NotImplementedError

    def save(self, directory: Path) -> None:
        """Writes encoder.json with vocabulary and weights."""
        saved = _SavedWords(
            encoder=self.name,
            max_tokens=self.max_tokens,
            vocabulary=self.vocabulary,
            weights=self.weights_V.tolist(),
            stop_words=self.stop_words,
        )
        with writing(directory):
            (directory / SAVED).write_text(_written(saved), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Loads a folder that `save` wrote."""
        saved = read_saved(directory, _SavedWords)
        if saved.weights is None or len(saved.weights) != len(saved.vocabulary):
            raise InputError(f"{directory / SAVED} is damaged: it needs one weight per word; save the run again")
        return cls(saved.vocabulary, saved.weights, saved.max_tokens, saved.stop_words)


class BagOfWords(_WeightedWords):
    """L2-normalised word counts."""

    name = "bow"

    @staticmethod
    def _weight(captions_with: int, captions: int) -> float:
        return 1.0


class TfIdf(_WeightedWords):
    """L2-normalised word counts times idf = ln((1 + N) / (1 + df)) + 1 (scikit-learn's smoothed form)."""

    name = "tfidf"

    @staticmethod
    def _weight(captions_with: int, captions: int) -> float:
        return float(np.log((captions + 1) / (captions_with + 1)) + 1)


class Word2Vec(_WordEncoder):
    """Skip-gram word vectors; equal captions give the same vectors, bit for bit, in every process."""

    name = "word2vec"

    def __init__(self, vocabulary: Sequence[str], vectors_VD: Matrix, max_tokens: int, stop_words: StopWords = None):
        super().__init__(vocabulary, vectors_VD, vectors_VD.shape[1], max_tokens, stop_words)

    def _pool(self, rows: NDArray[np.int64]) -> Matrix:
        return self.rows_VD[rows].mean(axis=0, dtype=np.float64).astype(np.float32)

    @classmethod
    def fit(cls, config: TextConfig, captions: Sequence[str]) -> Self:
        """Trains the vectors; raises InputError if the captions have no word."""
        from t2i.text.skip_gram import word_vectors

        sentences = _sentences(config, captions)
        counts = Counter(word for words in sentences for word in words)
        vocabulary = [word for word, _ in counts.most_common()]
        row_of = {word: row for row, word in enumerate(vocabulary)}
        rows = [np.array([row_of[word] for word in words], dtype=np.int64) for words in sentences if words]
        vectors_VD = word_vectors(rows, np.array([counts[word] for word in vocabulary]), WORD2VEC_DIM)
        return cls(vocabulary, vectors_VD, config.max_tokens or _longest(sentences), config.stop_words)

    def save(self, directory: Path) -> None:
        """Writes encoder.json (vocabulary) and vectors.safetensors."""
        from safetensors.numpy import save

        saved = _SavedWords(
            encoder=self.name, max_tokens=self.max_tokens, vocabulary=self.vocabulary, stop_words=self.stop_words
        )
        with writing(directory):
            (directory / "vectors.safetensors").write_bytes(save({"vectors": np.ascontiguousarray(self.rows_VD)}))
            (directory / SAVED).write_text(_written(saved), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Loads a folder that `save` wrote."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        saved = read_saved(directory, _SavedWords)
        path = directory / "vectors.safetensors"
        try:
            open_regular(path).close()
            vectors_VD = load_file(path)["vectors"]
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"cannot read the word vectors {path}: {error}; save the run again") from error
        if vectors_VD.ndim != 2 or len(vectors_VD) != len(saved.vocabulary) or vectors_VD.dtype != np.float32:
            raise InputError(f"{path} does not fit the vocabulary in {SAVED}; save the run again")
        if not np.isfinite(vectors_VD).all():
            raise InputError(f"{path} has vectors that are not finite; save the run again")
        return cls(saved.vocabulary, vectors_VD, saved.max_tokens, saved.stop_words)


def _written(saved: _SavedWords) -> str:
    """Returns the JSON text, without `stop_words` if it is None, as in earlier versions."""
    return saved.model_dump_json(exclude=None if saved.stop_words else {"stop_words"})


def _word_rows(vocabulary: Sequence[str], weights_V: NDArray[np.float64]) -> Matrix:
    """Returns [V, D]: one-hot rows times weight, multiplied by the random projection if V > 256."""
    if len(vocabulary) <= MAX_TOKEN_DIM:
        return np.diag(weights_V).astype(np.float32)
    directions_VD = seeding.normal(0, "text.word", seeding.ids_of(vocabulary), MAX_TOKEN_DIM) / math.sqrt(MAX_TOKEN_DIM)
    return (weights_V[:, None] * directions_VD).astype(np.float32)


def _sentences(config: TextConfig, captions: Sequence[str]) -> list[list[str]]:
    """Returns the words of each caption that an encoder is fitted to.

    Raises:
        InputError: the config has a path, or there is no word.
    """
    if config.path is not None:
        raise InputError(
            f"text.path={config.path!r} has no effect with text.encoder={config.encoder}, which is fitted to the training "
            "captions; remove it"
        )
    sentences = [split_words(caption) for caption in captions]
    if config.stop_words is not None:
        telling = Counter(word for words in sentences for word in words if word in TELLING)
        if telling:
            named = ", ".join(f"{word} ({count:,})" for word, count in telling.most_common(6))
            warnings.warn(
                f"text.stop_words={config.stop_words} leaves out words that describe images: {named}; remove it to keep them",
                stacklevel=3,
            )
        sentences = [[word for word in words if word not in ENGLISH] for words in sentences]
    if not any(sentences):
        raise InputError(
            f"text.encoder={config.encoder} found no word in {counted(len(captions), 'caption')}; check the data"
        )
    return sentences


def _longest(sentences: Sequence[Sequence[str]]) -> int:
    return min(MOST_TOKENS, max(FEWEST_TOKENS, max(map(len, sentences))))
