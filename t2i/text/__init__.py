"""Frozen text encoders behind one protocol. A new one is one file, one line in `ENCODERS` and one YAML file.

Axes: B captions, T text tokens, D width of a token state, P width of the pooled vector.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, Field, ValidationError

from t2i.config.section import Section
from t2i.config.towers import TextConfig
from t2i.errors import InputError, first_problem, os_errors
from t2i.names import resolve

if TYPE_CHECKING:
    import torch


class TextFeatures(NamedTuple):
    """Encoded captions, float32 on the CPU; the mask is True for real tokens and False for padding."""

    tokens_BTD: "torch.Tensor"
    mask_BT: "torch.Tensor"
    pooled_BP: "torch.Tensor"


class TextEncoder(Protocol):
    """A frozen map from captions to features. A row depends on its caption alone, never on the rest of the batch."""

    name: str  # the key in ENCODERS
    token_dim: int
    pooled_dim: int
    max_tokens: int  # T of tokens_BTD: every batch is padded to it

    def encode(self, captions: Sequence[str]) -> TextFeatures: ...

    def digest(self) -> str:
        """Returns the SHA-256 of everything that features depend on: weights, tokenizer or vocabulary, length limit."""
        ...

    def save(self, directory: Path) -> None:
        """Writes everything that `load` needs, including a copy of a pretrained tower."""
        ...


# Each class also has two functions that construct it:
#   fit(config: TextConfig, captions: Sequence[str]) -> Self     for a new run; `captions` are the training captions
#   load(directory: Path) -> Self                                from a folder that `save` wrote

# name -> "module:class", imported when used, as importing transformers takes 20 s
ENCODERS: dict[str, str] = {
    "aligned": "t2i.text.aligned:AlignedEncoder",
    "bow": "t2i.text.classical:BagOfWords",
    "tfidf": "t2i.text.classical:TfIdf",
    "word2vec": "t2i.text.classical:Word2Vec",
    "static": "t2i.text.static:StaticText",
    "clip": "t2i.text.towers:CLIPText",
    "t5": "t2i.text.towers:T5Text",
    "bert": "t2i.text.towers:BertText",
    "gpt2": "t2i.text.towers:GPT2Text",
}
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
CLASSICAL = ("bow", "tfidf", "word2vec")  # fitted to the training captions


def split_words(caption: str) -> list[str]:
    """Splits a caption into words in lower case: "A bird's-eye view" -> ["a", "bird's", "eye", "view"]."""
    return _WORD.findall(caption.lower())


def encoder_class(name: str) -> type:
    """Returns the class of a text encoder; raises KeyError for a name that is not in `ENCODERS`."""
    return resolve(ENCODERS[name])


def fit_encoder(config: TextConfig, captions: Sequence[str]) -> TextEncoder:
    """Returns the encoder of a new run, loaded from `config.path` or fitted to `captions`, the training captions.

    Raises:
        InputError: the path, the model in it, or the captions cannot be used.
    """
    if config.stop_words is not None and config.encoder not in CLASSICAL:
        raise InputError(
            f"text.stop_words={config.stop_words} has no effect with text.encoder={config.encoder}, which reads whole sentences; "
            f"remove it, or use {', '.join(CLASSICAL)}"
        )
    if config.width is not None and config.encoder != "static":
        raise InputError(f"text.width={config.width} has no effect with text.encoder={config.encoder}; remove it")
    return encoder_class(config.encoder).fit(config, captions)


def load_encoder(directory: Path) -> TextEncoder:
    """Loads the encoder that `save` wrote to `directory`; its encoder.json may only name a key of `ENCODERS`.

    Raises:
        InputError: `directory` holds no encoder, an unknown one, or a damaged one.
    """
    name = read_saved(directory, _SavedName).encoder
    if name not in ENCODERS:
        raise InputError(f"{directory / SAVED} names the text encoder {name!r}; valid names: {', '.join(ENCODERS)}")
    return encoder_class(name).load(directory)


SAVED = "encoder.json"


class _SavedName(BaseModel):
    encoder: str


class Saved(Section):
    """The fields of encoder.json that all encoders write; subclasses add fields."""

    encoder: str
    max_tokens: int = Field(ge=1)


AnySaved = TypeVar("AnySaved", bound=BaseModel)


def read_saved(directory: Path, schema: type[AnySaved]) -> AnySaved:
    """Reads encoder.json of `directory`; raises InputError if it is missing or does not fit `schema`."""
    from t2i.files import read_regular  # imports numpy, which is not needed to list configs

    path = directory / SAVED
    try:
        return schema.model_validate_json(read_regular(path))
    except OSError as error:
        raise InputError(f"no text encoder at {directory}: cannot read {SAVED} there ({error.strerror})") from error
    except ValidationError as error:
        raise InputError(f"{path} is not a saved text encoder ({first_problem(error)}); save the run again") from error


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Creates `directory` and converts file errors inside the block to InputError."""
    from safetensors import SafetensorError

    with os_errors(f"cannot write {directory}", "free some space or name another folder", SafetensorError):
        directory.mkdir(parents=True, exist_ok=True)
        yield
