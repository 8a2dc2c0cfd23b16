"""The tokens and answers of a reader, as its checkpoints store them."""

from dataclasses import dataclass
from typing import Any, Self

from t2i.align.tokenizer import CaptionTokenizer
from t2i.reader.network import Sizes
from t2i.text import TextEncoder


@dataclass(frozen=True)
class Vocabulary:
    """The tokens and answers of a reader.

    Attributes:
        label: the name of the label whose classes are among the answers; "": none.
        questions: False if the answers are those classes alone.
        decoder: shape of a decoder that was initialised with a GPT-2: maximum number of tokens, width, depth, heads.
    """

    tokenizer: CaptionTokenizer
    answers: tuple[str, ...] = ()
    decoder: tuple[int, int, int, int] | None = None
    label: str = ""
    questions: bool = True

    def kept(self) -> dict[str, Any]:
        """Returns the entries of the manifest."""
        tokenizer = self.tokenizer
        special = [tokenizer.PAD, tokenizer.START, tokenizer.END]
        decoder = None if self.decoder is None else list(self.decoder)
        return {
            "answers": list(self.answers),
            "special": special,
            "decoder": decoder,
            "max_tokens": tokenizer.max_tokens,
            **({"label": self.label, "questions": self.questions} if self.label else {}),
        }

    @classmethod
    def read(cls, json_text: str, kept: dict[str, Any]) -> Self:
        special, decoder = kept["special"], kept["decoder"]
        tokenizer = read_tokenizer(json_text, kept["max_tokens"], tuple(special))
        decoder = None if decoder is None else tuple(decoder)
        label, questions = kept.get("label", ""), kept.get("questions", True)
        return cls(tokenizer, tuple(kept["answers"]), decoder, label, questions)

    def sizes(self, text: TextEncoder | None) -> Sizes:
        return Sizes(len(self.tokenizer), len(self.answers), text.token_dim if text else 0, self.decoder)


def read_tokenizer(json_text: str, max_tokens: int, special: tuple[int, int, int] = (0, 1, 2)) -> CaptionTokenizer:
    """Reads a tokenizer from JSON; raises ValueError if it is damaged."""
    try:
        return CaptionTokenizer(json_text, max_tokens, special)
    except Exception as error:  # the library raises a plain Exception
        raise ValueError(f"its tokenizer: {error}") from error
