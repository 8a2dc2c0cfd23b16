"""Config of the image tokenizer. Imports no torch, so that config errors are reported quickly."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from t2i.config.section import Section
from t2i.config.training import StartConfig
from t2i.data import DataConfig


class AutoencoderConfig(Section):
    """Convolutions between the image and its grid of tokens."""

    grid: int = Field(default=8, ge=2, le=64, description="tokens per side; 8 gives 64 tokens per image")
    patch: int = Field(
        default=2,
        ge=1,
        le=8,
        description="side of the patches of pixels that are folded into channels before convolutions",
    )
    width: int = Field(
        default=32, ge=8, multiple_of=8, description="channels of the finest stage, doubled at each halving of the side"
    )
    width_limit: int = Field(default=96, ge=8, multiple_of=8, description="largest number of channels of a stage")
    encoder_depth: int = Field(default=1, ge=0, le=8, description="residual blocks per stage of the encoder")
    decoder_depth: int = Field(default=1, ge=0, le=8, description="residual blocks per stage of the decoder")
    attention: bool = Field(default=False, description="self-attention over the grid of tokens, in encoder and decoder")


class _Codes(Section):
    codebook_size: int = Field(default=2048, ge=2, le=2**20, description="codes of one codebook")
    dim: int = Field(default=8, ge=1, le=256, description="dimensions of a code")


class _Averages(_Codes):
    warmup_steps: int = Field(
        default=150, ge=0, description="steps without quantisation, after which the codebook consists of latents"
    )
    ema_decay: float = Field(
        default=0.95, gt=0, lt=1, description="decay of the moving averages that codes are computed from"
    )
    revival_steps: int = Field(default=10, ge=1, description="steps between searches for unused codes")
    revive_below: float = Field(
        default=0.1, ge=0, description="a code with fewer uses per step, on average, is replaced by a latent; 0: never"
    )


class VectorConfig(_Averages):
    """One codebook of unit-length codes that follows the latents by moving averages (VQ-VAE)."""

    kind: Literal["vector"] = Field(default="vector", description="one codebook, learned by moving averages (VQ-VAE)")


class ResidualConfig(_Averages):
    """Several codebooks, learned by moving averages, whose codes are summed (RQ-VAE)."""

    kind: Literal["residual"] = Field(
        default="residual", description="several codebooks whose codes are summed (RQ-VAE)"
    )
    depth: int = Field(default=2, ge=1, le=16, description="number of codebooks")


class SimVQConfig(_Codes):
    """One frozen random codebook behind a learned linear map (SimVQ)."""

    kind: Literal["simvq"] = Field(default="simvq", description="a random codebook behind a learned linear map (SimVQ)")


class ScalarConfig(Section):
    """Rounding of each dimension to a few levels, without a learned codebook (FSQ)."""

    kind: Literal["scalar"] = Field(default="scalar", description="rounding of each dimension to a few levels (FSQ)")
    levels: tuple[int, ...] = Field(
        default=(8, 8, 8), min_length=1, max_length=16, description="number of levels of each dimension, e.g. [8, 8, 8]"
    )

    @model_validator(mode="after")
    def _levels_make_a_grid(self) -> Self:
        if min(self.levels) < 2:
            raise ValueError(f"levels must each be at least 2, e.g. (8, 8, 8), got {self.levels}")
        return self

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)


QuantizerConfig = VectorConfig | ResidualConfig | SimVQConfig | ScalarConfig


class AutoencoderLossConfig(Section):
    """Weights of the terms that compare an image with its reconstruction."""

    l1: float = Field(default=1.0, ge=0, description="weight of the absolute error of pixels")
    l2: float = Field(default=1.0, ge=0, description="weight of the squared error of pixels")
    multi_scale: float = Field(
        default=1.0, ge=0, description="weight of the absolute error at half, a quarter, ... of the size, down to 4 px"
    )
    gradient: float = Field(
        default=1.0, ge=0, description="weight of the absolute error of differences between neighbouring pixels"
    )
    edge: float = Field(
        default=20.0,
        ge=0,
        description="extra weight of pixels at edges: multiplied by the range of values around a pixel, 0 to 2",
    )
    lpips: float = Field(
        default=0.0, ge=0, description="weight of the perceptual distance LPIPS, which needs lpips_path; 0: off"
    )
    lpips_path: str | None = Field(default=None, description="file of torchvision's VGG16 weights")
    adversarial: float = Field(
        default=0.0,
        ge=0,
        description="weight of the patch discriminator, multiplied by VQGAN's adaptive weight; 0: no discriminator",
    )
    adversarial_start: int = Field(
        default=20_000,
        ge=0,
        description="step from which the adversarial term is used; the discriminator is trained from step 0 on",
    )
    adversarial_ramp: int = Field(
        default=5_000, ge=1, description="steps over which the adversarial term grows to its weight"
    )


class PatchDiscriminatorConfig(Section):
    """The patch discriminator, which is used if loss.adversarial is not 0."""

    width: int = Field(
        default=64, ge=8, multiple_of=8, description="channels of the first layer, doubled at each halving of the side"
    )
    halvings: int = Field(
        default=3, ge=1, le=6, description="number of strided layers; with more of them, a logit sees a larger patch"
    )


class Config(StartConfig):
    """A VQ-VAE."""

    family: Literal["vqvae"] = "vqvae"
    data: DataConfig = DataConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    quantizer: Annotated[QuantizerConfig, Field(discriminator="kind")] = VectorConfig()
    loss: AutoencoderLossConfig = AutoencoderLossConfig()
    discriminator: PatchDiscriminatorConfig = PatchDiscriminatorConfig()
    validation_n: int = Field(
        default=500,
        ge=2,
        description="images of each held-out split that a validation uses, always the same ones",
    )
    train_batch_size: int = Field(default=32, ge=1, description="images of one micro-batch on one process")
    max_train_steps: int = Field(default=2200, ge=1, description="optimizer steps of the whole run")
    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate of Adam")
    lr_warmup_steps: int = Field(
        default=50,
        ge=0,
        description="steps over which the learning rate rises linearly to its peak; a cosine falls after it",
    )
    ema_halflife_images: int | None = Field(
        default=None,
        ge=1,
        description="half-life of averaged weights, in images, at most 1/20 of those seen so far; null: no average",
    )

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
