"""Config of the dual encoder. Imports no torch, so that a wrong key is reported at once."""

from typing import Annotated, Literal

from pydantic import Field

from t2i.config.section import Section
from t2i.config.training import StartConfig
from t2i.data import DataConfig


class TextTowerConfig(Section):
    """A small transformer over byte pairs, which are fitted on the training captions."""

    vocabulary: int = Field(default=2048, ge=300, le=65536, description="largest number of byte pairs")
    max_tokens: int = Field(
        default=48, ge=4, le=512, description="tokens that are kept of a caption, start and end included"
    )
    width: int = Field(default=128, ge=16, multiple_of=16, description="width of a token state")
    depth: int = Field(default=2, ge=1, le=24, description="transformer blocks")
    heads: int = Field(default=4, ge=1, le=32, description="attention heads")


class ImageTowerConfig(Section):
    """A residual convolutional tower that halves the image down to 4 x 4 and keeps every place of it."""

    width: int = Field(
        default=48, ge=8, multiple_of=8, description="channels of the first stage, doubled at each halving of the side"
    )
    width_limit: int = Field(default=192, ge=8, multiple_of=8, description="largest number of channels of a stage")
    depth: int = Field(default=1, ge=1, le=8, description="residual blocks of each stage")

    def channels(self, resolution: int) -> list[int]:
        """Returns the side of each stage's grid, from the finest to the last, which is 4 x 4."""
        return [min(self.width * 2**i, self.width_limit) for i in range((resolution // 4).bit_length() - 1)]


class BatchNegatives(Section):
    """The captions and images of the other pairs of a step."""

    kind: Literal["batch"] = Field(default="batch", description="the other pairs of the step")


class HardNegatives(Section):
    """Those, the more alike the heavier (Robinson et al., ICLR 2021)."""

    kind: Literal["hard"] = Field(default="hard", description="the other pairs of the step, the more alike the heavier")
    hardness: float = Field(default=0.3, gt=0, le=4, description="a negative weighs exp(hardness * its logit)")


class SoftNegatives(Section):
    """Those, and captions that share words are no entire mismatch."""

    kind: Literal["soft"] = Field(default="soft", description="captions that share words are no entire mismatch")
    share: float = Field(
        default=0.1, gt=0, lt=1, description="probability of the target that goes to others, by the words they share"
    )


class SwapNegatives(Section):
    """Those, and the own caption with two attributes of one kind exchanged, as far as it has such."""

    kind: Literal["swap"] = Field(default="swap", description="also the own caption with two attributes exchanged")
    weight: float = Field(default=0.5, gt=0, description="weight of the own caption against its exchange")


NegativesConfig = BatchNegatives | HardNegatives | SoftNegatives | SwapNegatives


class Config(StartConfig):
    """A dual encoder trained with the symmetric contrastive loss."""

    family: Literal["align"] = "align"
    data: DataConfig = DataConfig()
    text_tower: TextTowerConfig = TextTowerConfig()
    image_tower: ImageTowerConfig = ImageTowerConfig()
    negatives: Annotated[NegativesConfig, Field(discriminator="kind")] = BatchNegatives()
    embedding: int = Field(default=128, ge=8, description="dimensions that images and captions share")
    split: Literal["train", "all"] = Field(
        default="train",
        description="`all` includes what shapes and emoji hold out: for a scorer, never for a generator's guide",
    )
    validation_n: int = Field(
        default=1000, ge=2, description="pairs of each held-out split among which Recall@K is measured"
    )
    train_batch_size: int = Field(
        default=256,
        ge=2,
        description="images of one micro-batch on one process; all pairs of a step are negatives of each other, "
        "whatever gradient_accumulation_steps is",
    )
    max_train_steps: int = Field(default=250, ge=1, description="optimizer steps of the whole run")
    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate of AdamW")
    lr_warmup_steps: int = Field(
        default=20,
        ge=0,
        description="steps over which the learning rate rises linearly to its peak; a cosine falls after it",
    )
    weight_decay: float = Field(
        default=0.02, ge=0, description="weight decay of matrices; gains, biases and embeddings have none"
    )
