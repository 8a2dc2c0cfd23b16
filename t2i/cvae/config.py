"""Config of the conditional VAE over a tokenizer's latents. Imports no torch, so that a wrong key is reported at once."""

from typing import Literal

from pydantic import Field, model_validator

from t2i.config.section import Section
from t2i.config.training import DrawingConfig
from t2i.data import DataConfig
from t2i.text import TextConfig


class FrozenLatentsConfig(Section):
    """The tokenizer whose latents are generated."""

    path: str = Field(
        default="runs/vqvae",
        description="run of t2i train vqvae, or a run, saved or shipped model that holds a tokenizer",
    )


class NetworkConfig(Section):
    """Sizes of the generator and of the small posterior network, which only training uses."""

    z_dim: int = Field(default=16, ge=1, description="dimensions of the noise")
    width: int = Field(default=96, ge=16, multiple_of=16, description="channels of the residual stream")
    depth: int = Field(default=4, ge=1, le=64, description="transformer blocks")
    heads: int = Field(default=4, ge=1, le=64, description="attention heads; width is a multiple of 4 x heads")
    word_layers: int = Field(
        default=2, ge=0, le=8, description="residual convolutions over 5 words before the first block; 0: none"
    )
    posterior_width: int = Field(default=64, ge=8, description="channels of the posterior network")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "NetworkConfig":
        if self.width % (4 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 4 x heads = {4 * self.heads}")
        return self


class ObjectiveConfig(Section):
    """Weights of the squared error of latents and of the information in the noise."""

    kl: float = Field(
        default=0.003,
        ge=0,
        description="weight of the KL divergence of the posterior from a standard normal, in nats per image",
    )
    without_noise: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="share of captions trained without noise, so that the generator has to use their words",
    )
    contrast: float = Field(
        default=3.0,
        ge=0,
        description="average extra weight of places, proportional to their difference from their neighbours",
    )


CRITIC_COST = 4.6  # time of a step with the critic, relative to one without it (LOG.md)


class CriticConfig(Section):
    """A critic that is trained in the last part of a run and sharpens what squared error leaves blurred."""

    start: float = Field(default=0.9, ge=0, le=1, description="share of the run after which the critic joins; 1: never")
    weight: float = Field(default=0.05, ge=0, description="weight of the adversarial loss")
    lead: float = Field(
        default=1.0,
        ge=0,
        description="weight of squared error and KL divergence once the critic has joined; 0: only the adversarial loss",
    )
    learning_rate: float = Field(
        default=1e-3, gt=0, description="peak learning rate of generator and critic once the critic has joined"
    )
    depth: int = Field(default=2, ge=1, le=64, description="transformer blocks, of the generator's width")
    gamma: float = Field(default=0.1, ge=0, description="weight of the gradient penalties (R1 and R2)")

    @model_validator(mode="after")
    def _generator_has_a_loss(self) -> "CriticConfig":
        if not self.lead and not self.weight and self.start < 1:
            raise ValueError("weight and lead are both 0, so the generator would have no loss")
        return self


class Config(DrawingConfig):
    """A one-pass generator of a tokenizer's latents, trained as a conditional VAE and sharpened by a critic."""

    family: Literal["cvae"] = "cvae"
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    tokenizer: FrozenLatentsConfig = FrozenLatentsConfig()
    model: NetworkConfig = NetworkConfig()
    loss: ObjectiveConfig = ObjectiveConfig()
    critic: CriticConfig = CriticConfig()
    flip: bool = Field(
        default=False, description="mirror training images at random; switched off if captions mention left or right"
    )
    learning_rate: float = Field(default=4e-3, gt=0, description="peak learning rate")
    ema_halflife_images: int = Field(default=20_000, ge=1, description="half-life of the averaged weights, in images")

    @property
    def mean_cost(self) -> float:
        start = self.critic.start
        return 1.0 if start == 0 else start + (1 - start) * CRITIC_COST
