"""Config of the conditional GAN. Imports no torch, so that a wrong key is reported at once."""

from functools import reduce
from typing import Literal

from pydantic import Field

from t2i.config.section import Section
from t2i.config.training import DrawingConfig
from t2i.data import DataConfig
from t2i.text import TextConfig


class GeneratorConfig(Section):
    """One learned 4 x 4 map a caption and noise, then residual stages that double the picture."""

    z_dim: int = Field(default=64, ge=1, description="dimensions of the noise")
    w_dim: int = Field(
        default=256, ge=8, description="dimensions of the latent that the mapping makes of noise and text"
    )
    width: int = Field(
        default=32, ge=8, multiple_of=8, description="channels at full resolution; doubled at each halving"
    )
    width_limit: int = Field(default=256, ge=8, multiple_of=8, description="most channels of a stage")
    depth: int = Field(default=1, ge=1, le=4, description="residual blocks a stage")
    cross_attention: bool = Field(
        default=False, description="words: gated cross-attention over token states at 8 x 8 and 16 x 16"
    )


class DiscriminatorConfig(Section):
    """The mirror image, ending in a projection on the caption."""

    width: int = Field(
        default=32, ge=8, multiple_of=8, description="channels at full resolution; doubled at each halving"
    )
    width_limit: int = Field(default=256, ge=8, multiple_of=8, description="most channels of a stage")
    depth: int = Field(default=1, ge=1, le=4, description="residual blocks a stage")
    feature_dim: int = Field(default=256, ge=8, description="dimensions of phi(x), which the caption is projected on")


class LossConfig(Section):
    """What the two players minimise."""

    kind: Literal["relativistic", "hinge"] = Field(
        default="relativistic", description="relativistic pairing with R1 and R2 (R3GAN), or hinge with MA-GP (DF-GAN)"
    )
    mismatched_weight: float = Field(
        default=0.5, ge=0, description="weight of real pictures with captions of other pictures"
    )
    negatives: int = Field(
        default=64, ge=1, description="captions of other pictures that each step brings as mismatches"
    )
    gamma: float = Field(default=0.05, ge=0, description="weight of R1 and R2; falls to a tenth over the run")
    penalty: Literal["finite_difference", "autograd"] = Field(
        default="finite_difference", description="how the gradient norm is estimated; autograd is the slower reference"
    )
    penalty_fraction: float = Field(
        default=0.5, gt=0, le=1, description="share of the batch that the penalty is computed on"
    )
    penalty_sigma: float = Field(
        default=0.01, gt=0, description="step of the finite difference, in units of pixels in [-1, 1]"
    )
    ma_gp_weight: float = Field(default=2.0, ge=0, description="weight of MA-GP; only for hinge")
    reconstruction: float = Field(
        default=0.0,
        ge=0,
        description="weight of the squared distance to the real picture of the caption (conditional IMLE): leads a short "
        "run; 0: off",
    )
    candidates: int = Field(
        default=4,
        ge=1,
        le=64,
        description="noises tried for each picture, of which the nearest to the real one is drawn; only with reconstruction",
    )
    centering: float = Field(
        default=0.01, ge=0, description="weight of (D(real) + D(fake))^2, which keeps logits from drifting"
    )


class GuidanceConfig(Section):
    """A frozen dual encoder's image-text similarity added to the generator's loss. That encoder may not score the run."""

    encoder: Literal["none", "text", "aligned", "clip"] = Field(
        default="none", description="`text`: the run's own text encoder if it has an image tower (aligned, clip)"
    )
    path: str | None = Field(default=None, description="align run or CLIP directory, for `aligned` and `clip`")
    weight: float = Field(
        default=0.5, ge=0, description="weight of the contrastive loss of generated pictures and captions"
    )


class Config(DrawingConfig):
    """A text-conditional GAN."""

    family: Literal["cgan"] = "cgan"
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    architecture: Literal["resnet"] = Field(
        default="resnet", description="a name in t2i.cgan.architectures.ARCHITECTURES"
    )
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loss: LossConfig = LossConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    augment: tuple[Literal["translation", "cutout", "color"], ...] = Field(
        default=(), description="differentiable augmentation of reals and fakes (DiffAugment): for small data"
    )
    flip: bool = Field(
        default=False, description="mirror training pictures at random; off by itself where captions say left or right"
    )
    condition_ramp: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the run over which the caption fades in: 0.1-0.2 helps on small data",
    )
    train_batch_size: int = Field(default=64, ge=2, description="pictures a micro-batch on each process")
    max_train_steps: int = Field(default=4000, ge=1, description="optimiser steps of each player")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate of the generator")
    discriminator_learning_rate: float | None = Field(default=None, gt=0, description="null: the generator's")
    lr_warmup_steps: int = Field(default=100, ge=0, description="steps of linear warm-up")
    lr_final_factor: float = Field(default=0.05, ge=0, le=1, description="the cosine ends at this share of the peak")
    adam_beta2: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="of both Adams (beta1 is 0); 0.99 lets a rare large gradient move a weight 10 steps",
    )
    ema_halflife_images: int = Field(
        default=100_000, ge=1, description="half-life of the averaged generator, in pictures"
    )
    ema_ramp: float = Field(default=0.05, ge=0, description="the half-life is at most this share of the pictures seen")


def without_effect(config: Config) -> list[str]:
    """What is set, and not to its default, but plays no part beside the rest: a sentence each."""
    loss, guidance = config.loss, config.guidance
    idle: dict[str, str] = {}
    if loss.kind == "hinge":
        names = ("penalty", "penalty_fraction", "penalty_sigma", "gamma", "centering")
        idle |= {f"loss.{name}": "loss.kind=hinge" for name in names}
    else:
        idle["loss.ma_gp_weight"] = "loss.kind=relativistic"
        if loss.penalty == "autograd":
            idle |= {f"loss.{name}": "loss.penalty=autograd" for name in ("penalty_fraction", "penalty_sigma")}
    if not loss.reconstruction:
        idle["loss.candidates"] = "loss.reconstruction=0"
    if guidance.encoder in ("none", "text"):
        idle["guidance.path"] = f"guidance.encoder={guidance.encoder}"
    if guidance.encoder == "none":
        idle["guidance.weight"] = "guidance.encoder=none"

    defaults = Config()
    changed = [
        key for key in idle if reduce(getattr, key.split("."), config) != reduce(getattr, key.split("."), defaults)
    ]
    return [f"{key} has no effect with {idle[key]}" for key in changed]
