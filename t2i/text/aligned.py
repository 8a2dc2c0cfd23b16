"""The encoder `aligned`: the frozen text tower of a dual encoder trained by `t2i train align`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from t2i.align.frozen import AnyDualEncoder, load_dual_encoder
from t2i.align.mapped import MappedDualEncoder
from t2i.errors import InputError, warn_truncated
from t2i.text import Saved, TextConfig, TextFeatures, read_saved, split_words, writing
from t2i.weights import dual_encoder_in, shared_text_encoder

FOLDER = "dual_encoder"


class AlignedEncoder:
    """Returns the tower's token states; the pooled vector is their mean, projected to the joint space, of unit length.

    `dual` is the whole dual encoder, whose image tower serves as guide.
    """

    name = "aligned"

    def __init__(self, dual: AnyDualEncoder, max_tokens: int | None = None) -> None:
        self.dual = dual
        limit = dual.max_tokens
        if max_tokens is not None and not 3 <= max_tokens <= limit:
            raise InputError(
                f"text.max_tokens={max_tokens} does not fit this aligned encoder, which reads 3 to {limit} tokens"
            )
        self.max_tokens = max_tokens or limit
        self.token_dim, self.pooled_dim = dual.token_dim, dual.pooled_dim

    @classmethod
    def fit(cls, config: TextConfig, captions: Sequence[str]) -> Self:
        """Loads the dual encoder at `config.path`, or without a path that of the shipped models, for the embedded shapes.

        Raises:
            InputError: there is no path and the captions have words that the shipped encoder does not know.
        """
        if config.path is not None:
            return cls(load_dual_encoder(dual_encoder_in(config.path)), config.max_tokens)
        shipped = cls.load(shared_text_encoder())
        if unknown := shipped.unknown_words(captions):
            raise InputError(
                f"the text encoder that ships with t2i reads captions of the embedded shapes and does not know {unknown[0]!r}; "
                "train one on your data with t2i train align --config align-tiny --data ADDRESS --run-dir "
                "runs/align and add --set text.path=runs/align, or add --set text.encoder=bow, which needs no training"
            )
        return cls(shipped.dual, config.max_tokens)

    @classmethod
    def load(cls, directory: Path) -> Self:
        saved = read_saved(directory, Saved)
        return cls(load_dual_encoder(directory / FOLDER), saved.max_tokens)

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        tokens, mask, pooled, cut = self.dual.states(captions, self.max_tokens)
        warn_truncated(cut, self.name, self.max_tokens)
        return TextFeatures(tokens, mask, pooled)

    def unknown_words(self, captions: Sequence[str]) -> list[str]:
        """Returns the words that no training caption has; an empty list if the vocabulary could not hold all of those."""
        if isinstance(self.dual, MappedDualEncoder):
            return self.dual.unknown_words(captions)
        if len(self.dual.tokenizer) >= self.dual.config.text_tower.vocabulary:
            return []
        words = dict.fromkeys(word for caption in captions for word in split_words(caption))
        return [word for word in words if not self.dual.tokenizer.has_word(word)]

    def digest(self) -> str:
        return f"{self.dual.digest()}-{self.max_tokens}"

    def save(self, directory: Path) -> None:
        with writing(directory):
            self.dual.save(directory / FOLDER)
            saved = Saved(encoder=self.name, max_tokens=self.max_tokens)
            (directory / "encoder.json").write_text(saved.model_dump_json())
