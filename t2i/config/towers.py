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
        description="local directory or hub id of clip/t5/bert/gpt2, or of the model that `static` distils, or an align run "
        "for `aligned` (null: the encoder of the shipped models, for the embedded shapes); classical encoders are fitted to "
        "the training captions and have no path",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=512,
        description="maximum number of text tokens; null: 77 for clip/t5/bert/gpt2 (or their limit if that is lower, or that "
        "of a sentence-transformers folder), the longest training caption for the others",
    )
    stop_words: Literal["english"] | None = Field(
        default=None,
        description="words that bow, tfidf and word2vec leave out; english: scikit-learn's list, which includes above, under "
        "and two; null: none",
    )
    width: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        description="principal components that `static` keeps, at most the width of its tower; null: 128; for `static` only",
    )


class GivenImageConfig(Section):
    """A pretrained image tower."""

    encoder: Literal["aligned", "classical", "resnet", "vit", "clip"] = Field(
        default="aligned", description="a name in t2i.extractors.IMAGE_ENCODERS"
    )
    path: str | None = Field(
        default=None,
        description="a run of t2i train align, or a folder of transformers with a preprocessor; null: for `aligned`, the "
        "dual encoder that ships with the package, for the embedded shapes; `classical` has no path",
    )


class TunableImageConfig(GivenImageConfig):
    """A pretrained image tower that may be trained further."""

    trained: bool = Field(default=False, description="train it together with the reader; else it is frozen")
