"""Config of the image tokenizer. Imports no torch, so that a wrong key is reported at once."""

from typing import Literal, Self

from pydantic import Field, model_validator

from t2i.config.section import Section
from t2i.config.training import TrainConfig
from t2i.data import DataConfig


class AutoencoderConfig(Section):
    """Convolutions between the picture and its grid of tokens."""

    grid: int = Field(default=8, ge=2, le=64, description="tokens a side: 8 makes 64 tokens a picture")
    patch: int = Field(default=2, ge=1, le=8, description="pixels a side folded into channels before any convolution")
    width: int = Field(
        default=32, ge=8, multiple_of=8, description="channels behind the patches; doubled at each halving"
    )
    width_limit: int = Field(default=96, ge=8, multiple_of=8, description="most channels")
    encoder_depth: int = Field(default=1, ge=0, le=8, description="residual blocks at each size of the encoder")
    decoder_depth: int = Field(default=1, ge=0, le=8, description="residual blocks at each size of the decoder")
    attention: bool = Field(default=False, description="self-attention over the grid, in encoder and decoder")


class QuantizerConfig(Section):
    """How latents become one of K codes."""

    kind: Literal["vector", "scalar", "residual", "simvq"] = Field(
        default="vector", description="a name in t2i.vqvae.quantizers.QUANTIZERS"
    )
    codebook_size: int = Field(default=2048, ge=2, le=2**20, description="codes of a codebook; not for scalar")
    dim: int = Field(default=8, ge=1, le=256, description="dimensions of a code; not for scalar")
    levels: tuple[int, ...] = Field(
        default=(8, 8, 8), min_length=1, max_length=16, description="values of each dimension; only for scalar"
    )
    depth: int = Field(default=2, ge=1, le=16, description="codebooks that add up; only for residual")
    commitment: float = Field(
        default=0.25, ge=0, description="weight of the distance of latents to their codes; not for scalar"
    )
    warmup_steps: int = Field(
        default=150, ge=0, description="steps without quantisation before the codebook is made; vector and residual"
    )
    ema_decay: float = Field(
        default=0.95, gt=0, lt=1, description="of the averages that codes are made of; vector and residual"
    )
    revival_steps: int = Field(default=10, ge=1, description="dead codes are looked for every so many steps; as above")
    revive_below: float = Field(
        default=0.1, ge=0, description="a code with fewer uses a step, averaged, is replaced by a latent; 0: never"
    )
    revival_count: float = Field(default=1.0, gt=0, description="uses a step that a new code is credited with")

    @model_validator(mode="after")
    def _levels_make_a_grid(self) -> Self:
        if min(self.levels) < 2:
            raise ValueError(f"levels must each be at least 2, as (8, 8, 8), got {self.levels}")
        return self


class LossConfig(Section):
    """What a reconstruction is measured by."""

    l1: float = Field(default=1.0, ge=0, description="weight of the absolute error of pixels")
    l2: float = Field(default=1.0, ge=0, description="weight of the squared error of pixels")
    multi_scale: float = Field(
        default=1.0, ge=0, description="weight of the absolute error of halved pictures, down to 4 px"
    )
    gradient: float = Field(default=1.0, ge=0, description="weight of the absolute error of pixel differences")
    edge: float = Field(
        default=20.0, ge=0, description="extra weight of a pixel, times the range of values around it, which is 0 to 2"
    )
    lpips: float = Field(
        default=0.0, ge=0, description="weight of the perceptual distance; above 0 it needs lpips_path"
    )
    lpips_path: str | None = Field(default=None, description="file of torchvision's VGG16 weights, for lpips")
    adversarial: float = Field(
        default=0.0, ge=0, description="weight of the patch discriminator, times the adaptive weight; 0: there is none"
    )
    adversarial_start: int = Field(
        default=20_000, ge=0, description="step at which its term begins; it is trained from step 0 on"
    )
    adversarial_ramp: int = Field(default=5_000, ge=1, description="steps over which its term grows to its weight")
    adaptive_limit: float = Field(default=10.0, gt=0, description="most that the adaptive weight may be")


class DiscriminatorConfig(Section):
    """The patch discriminator; only where loss.adversarial is above 0."""

    width: int = Field(
        default=64, ge=8, multiple_of=8, description="channels of its first layer; doubled at each halving"
    )
    halvings: int = Field(default=3, ge=1, le=6, description="strided layers: how large a patch one logit sees")


class Config(TrainConfig):
    """A VQ-VAE."""

    family: Literal["vqvae"] = "vqvae"
    data: DataConfig = DataConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    loss: LossConfig = LossConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    validation_n: int = Field(
        default=500,
        ge=2,
        description="pictures of each held-out split that a validation scores: the same ones every time",
    )
    train_batch_size: int = Field(default=32, ge=1, description="pictures a micro-batch on each process")
    max_train_steps: int = Field(default=2200, ge=1, description="optimiser steps")
    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate of Adam")
    lr_warmup_steps: int = Field(default=50, ge=0, description="steps of linear warm-up")
    lr_final_factor: float = Field(default=0.05, ge=0, le=1, description="the cosine ends at this share of the peak")
    adam_beta2: float = Field(default=0.99, ge=0, lt=1, description="of Adam; beta1 is 0.9")
    ema_halflife_images: int | None = Field(
        default=None, ge=1, description="half-life of averaged weights, in pictures; null: none are kept"
    )
    ema_ramp: float = Field(default=0.05, ge=0, description="the half-life is at most this share of the pictures seen")

    @model_validator(mode="after")
    def _strides_divide(self) -> Self:
        cells = self.autoencoder.grid * self.autoencoder.patch
        ratio = self.data.resolution // cells
        if self.data.resolution % cells or ratio & (ratio - 1):
            raise ValueError(
                f"data.resolution {self.data.resolution} must be autoencoder.grid {self.autoencoder.grid} times "
                f"autoencoder.patch {self.autoencoder.patch} times a power of two; change one of them"
            )
        return self
