"""Config of the conditional GAN. Imports no torch, so that config errors are reported quickly."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from t2i.config.section import Section
from t2i.config.training import DrawingConfig
from t2i.data import DataConfig
from t2i.text import TextConfig


class GeneratorConfig(Section):
    """A 4 x 4 feature map computed from caption and noise, then residual stages that each double the side of the image."""

    z_dim: int = Field(default=64, ge=1, description="dimensions of the noise")
    w_dim: int = Field(
        default=256,
        ge=8,
        description="dimensions of the latent w, which the mapping network computes from noise and text",
    )
    width: int = Field(
        default=32, ge=8, multiple_of=8, description="channels at full resolution, doubled at each halving of the side"
    )
    width_limit: int = Field(default=256, ge=8, multiple_of=8, description="largest number of channels of a stage")
    depth: int = Field(default=1, ge=1, le=4, description="residual blocks per stage")
    cross_attention: bool = Field(
        default=False,
        description="attend to the words of the caption: gated cross-attention over token states at 8 x 8 and 16 x 16",
    )


class DiscriminatorConfig(Section):
    """Residual stages that each halve the side of the image, then a projection on the caption."""

    width: int = Field(
        default=32, ge=8, multiple_of=8, description="channels at full resolution, doubled at each halving of the side"
    )
    width_limit: int = Field(default=256, ge=8, multiple_of=8, description="largest number of channels of a stage")
    depth: int = Field(default=1, ge=1, le=4, description="residual blocks per stage")
    feature_dim: int = Field(
        default=256, ge=8, description="dimensions of the image features phi(x) that the caption is projected on"
    )


class _Loss(Section):
    negatives: int = Field(default=64, ge=1, description="captions of other images used as mismatches in each step")
    reconstruction: float = Field(
        default=0.0,
        ge=0,
        description="weight of the squared distance between a caption's real image and the nearest of a few generated ones "
        "(conditional IMLE), which helps short runs; 0: off",
    )


class RelativisticLoss(_Loss):
    """Relativistic pairing of real and generated images with R1 and R2 penalties (R3GAN)."""

    kind: Literal["relativistic"] = Field(default="relativistic", description="relativistic pairing, R1 and R2 (R3GAN)")
    gamma: float = Field(default=0.05, ge=0, description="weight of R1 and R2, which falls to a tenth over the run")
    penalty: Literal["finite_difference", "autograd"] = Field(
        default="finite_difference", description="how the gradient norm is estimated; autograd is the slower reference"
    )
    penalty_fraction: float = Field(
        default=0.5, gt=0, le=1, description="share of the batch that the penalties are computed on"
    )


class HingeLoss(_Loss):
    """Hinge losses with the matching-aware gradient penalty (DF-GAN)."""

    kind: Literal["hinge"] = Field(default="hinge", description="hinge losses with MA-GP (DF-GAN)")


LossConfig = RelativisticLoss | HingeLoss


class _Guidance(Section):
    weight: float = Field(
        default=0.5, ge=0, description="weight of the contrastive loss between generated images and captions"
    )


class NoGuidance(Section):
    """No guidance term in the generator's loss."""

    encoder: Literal["none"] = Field(default="none", description="no guidance")
    path: ClassVar[None] = None
    weight: ClassVar[float] = 0.0


class TextGuidance(_Guidance):
    """Image-text similarity by the run's text encoder, which must have an image tower (aligned)."""

    encoder: Literal["text"] = Field(default="text", description="the run's text encoder")
    path: ClassVar[None] = None


class AlignedGuidance(_Guidance):
    """Image-text similarity by a dual encoder, which may not score the run afterwards."""

    encoder: Literal["aligned"] = Field(default="aligned", description="a dual encoder trained by t2i train align")
    path: str = Field(description="run directory of t2i train align")


class CLIPGuidance(_Guidance):
    """Image-text similarity by a CLIP model, which may not score the run afterwards."""

    encoder: Literal["clip"] = Field(default="clip", description="a CLIP model")
    path: str = Field(description="folder of a CLIP model")


GuidanceConfig = NoGuidance | TextGuidance | AlignedGuidance | CLIPGuidance


class Config(DrawingConfig):
    """A text-conditional GAN."""

    takes_unlabelled: ClassVar[bool] = True

    family: Literal["cgan"] = "cgan"
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    architecture: Literal["resnet"] = Field(
        default="resnet", description="a name in t2i.cgan.architectures.ARCHITECTURES"
    )
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loss: Annotated[LossConfig, Field(discriminator="kind")] = RelativisticLoss()
    guidance: Annotated[GuidanceConfig, Field(discriminator="encoder")] = NoGuidance()
    augment: tuple[Literal["translation", "cutout", "color"], ...] = Field(
        default=(), description="differentiable augmentation of real and generated images (DiffAugment), for small data"
    )
    flip: bool = Field(
        default=False, description="mirror training images at random; switched off if captions mention left or right"
    )
    condition_ramp: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the run over which conditioning on the caption is ramped up; 0.1 to 0.2 helps on small data",
    )
    train_batch_size: int = Field(default=64, ge=2, description="images of one micro-batch on one process")
    max_train_steps: int = Field(default=4000, ge=1, description="optimizer steps of each network")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate of both networks")
    adam_beta2: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="beta2 of both Adam optimizers (beta1 is 0); at 0.99 a rare large gradient may move a weight by 10 "
        "learning rates",
    )
    ema_halflife_images: int = Field(
        default=100_000,
        ge=1,
        description="half-life of the averaged generator, in images; at most 1/20 of the images seen so far",
    )
