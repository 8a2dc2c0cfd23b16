"""Configs of frozen networks that read captions and images, for all who build on such. Imports no torch."""

from typing import Literal

from pydantic import Field

from t2i.config.section import Section


class TextConfig(Section):
    """The frozen encoder that reads the captions."""

    encoder: Literal["aligned", "bow", "tfidf", "word2vec", "static", "clip", "t5", "bert", "gpt2"] = Field(
        default="aligned", description="name of the text encoder"
    )
    path: str | None = Field(
        default=None,
        description="local directory or hub id of clip/t5/bert/gpt2, or of one that `static` distils, or an align run for "
        "`aligned` (null: the encoder of the shipped models, for the embedded shapes); classical encoders are fitted on "
        "the training captions and take none",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=512,
        description="text tokens kept; null: 77 for clip/t5/bert/gpt2 (or their own limit where that is less, or that of a "
        "sentence-transformers folder), the longest training caption for the others",
    )
    stop_words: Literal["english"] | None = Field(
        default=None,
        description="words that bow, tfidf and word2vec leave out: english, scikit-learn's list, which holds above, under "
        "and two; null: none",
    )
    width: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        description="principal components that `static` keeps, at most what its tower has; null: 128; no other encoder has it",
    )


class GivenImageConfig(Section):
    """An image tower that exists."""

    encoder: Literal["aligned", "classical", "resnet", "vit", "clip"] = Field(
        default="aligned", description="a name in t2i.extractors.IMAGE_ENCODERS"
    )
    path: str | None = Field(
        default=None,
        description="a run of t2i train align, or a folder of transformers with its preprocessing; null: of `aligned` the "
        "dual encoder that ships with the package, for the embedded shapes; classical needs none",
    )


class TunableImageConfig(GivenImageConfig):
    """An image tower that exists, and may be trained on."""

    trained: bool = Field(default=False, description="go on training it with the reader; else it is frozen")
