"""Config of the dual encoder. Imports no torch, so that a wrong key is reported at once."""

from typing import Literal

from pydantic import Field

from t2i.config.section import Section
from t2i.config.training import TrainConfig
from t2i.data import DataConfig


class TextTowerConfig(Section):
    """A small transformer over byte pairs that were fitted on the training captions."""

    vocabulary: int = Field(default=2048, ge=300, le=65536, description="byte pairs at most")
    max_tokens: int = Field(default=48, ge=4, le=512, description="tokens kept of a caption, start and end included")
    width: int = Field(default=128, ge=16, multiple_of=16, description="width of a token state")
    depth: int = Field(default=2, ge=1, le=24, description="transformer blocks")
    heads: int = Field(default=4, ge=1, le=32, description="attention heads")


class ImageTowerConfig(Section):
    """A residual convolutional tower that halves the picture down to 4 x 4 and keeps what stands where."""

    width: int = Field(
        default=48, ge=8, multiple_of=8, description="channels of the first stage; doubled at each halving"
    )
    width_limit: int = Field(default=192, ge=8, multiple_of=8, description="most channels of a stage")
    depth: int = Field(default=1, ge=1, le=8, description="residual blocks a stage")

    def channels(self, resolution: int) -> list[int]:
        """Of each stage, from the finest to the last, which is 4 x 4."""
        return [min(self.width * 2**i, self.width_limit) for i in range((resolution // 4).bit_length() - 1)]


class Config(TrainConfig):
    """A dual encoder trained with the symmetric contrastive loss."""

    family: Literal["align"] = "align"
    data: DataConfig = DataConfig()
    text_tower: TextTowerConfig = TextTowerConfig()
    image_tower: ImageTowerConfig = ImageTowerConfig()
    embedding: int = Field(default=128, ge=8, description="dimensions that images and captions share")
    split: Literal["train", "all"] = Field(
        default="train",
        description="`all` also shows the held-out combinations: for a scorer, never for a generator's guide",
    )
    validation_n: int = Field(
        default=1000, ge=2, description="pairs of each held-out split among which Recall@K is measured"
    )
    captioning_weight: float = Field(
        default=1.0,
        ge=0,
        description="weight of writing the caption from the picture beside matching it (CoCa); 0: off",
    )
    augment: bool = Field(default=True, description="noise and small shifts on the training pictures")
    train_batch_size: int = Field(
        default=256, ge=2, description="pictures a step on each process: each is a negative of all others"
    )
    max_train_steps: int = Field(default=250, ge=1, description="optimiser steps")
    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate of AdamW")
    lr_warmup_steps: int = Field(default=20, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(default=0.02, ge=0, description="of matrices; none on gains, biases and embeddings")
