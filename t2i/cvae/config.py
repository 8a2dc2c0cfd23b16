"""Config of the conditional VAE over a tokenizer's latents. Imports no torch, so that a wrong key is reported at once."""

from typing import Literal

from pydantic import Field, model_validator

from t2i.config.section import Section
from t2i.config.training import DrawingConfig
from t2i.data import DataConfig
from t2i.text import TextConfig


class FrozenLatentsConfig(Section):
    """Which tokenizer's latents are generated."""

    path: str = Field(
        default="runs/vqvae",
        description="run of t2i train vqvae, or a run, saved or shipped model that holds a tokenizer",
    )


class NetworkConfig(Section):
    """The generator, and the small posterior network that training alone uses."""

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
    """Squared error of latents and the price of the noise's information."""

    kl: float = Field(
        default=0.003, ge=0, description="weight of the KL divergence of the noise, in nats an image, from a normal"
    )
    without_noise: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="share of captions that see no noise: they must find in their words all that words decide",
    )
    contrast: float = Field(
        default=3.0, ge=0, description="extra weight of a place by its difference from its neighbours, on average"
    )


CRITIC_COST = 4.6  # time of a step in which the critic plays, in units of one without it (LOG.md)


class CriticConfig(Section):
    """A critic that joins late and sharpens what squared error leaves blurred."""

    start: float = Field(default=0.9, ge=0, le=1, description="share of the run after which it joins; 1: never")
    weight: float = Field(default=0.05, ge=0, description="of the adversarial loss beside the squared error")
    lead: float = Field(
        default=1.0, ge=0, description="weight of squared error and information while it plays; 0: the critic alone"
    )
    learning_rate: float = Field(
        default=1e-3, gt=0, description="peak learning rate of both players once it has joined"
    )
    depth: int = Field(default=2, ge=1, le=64, description="transformer blocks; their width is the generator's")
    gamma: float = Field(default=0.1, ge=0, description="weight of the penalties on its gradient (R1 and R2)")

    @model_validator(mode="after")
    def _somebody_teaches(self) -> "CriticConfig":
        if not self.lead and not self.weight and self.start < 1:
            raise ValueError("weight and lead are both 0: nothing would teach the generator")
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
        default=False, description="mirror training images at random; off by itself where captions say left or right"
    )
    learning_rate: float = Field(default=4e-3, gt=0, description="peak learning rate")
    ema_halflife_images: int = Field(default=20_000, ge=1, description="half-life of the averaged weights, in images")

    @property
    def mean_cost(self) -> float:
        start = self.critic.start
        return 1.0 if start == 0 else start + (1 - start) * CRITIC_COST
