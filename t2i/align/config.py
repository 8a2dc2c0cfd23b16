"""Config of the dual encoder. Imports no torch, so that a wrong key is reported at once."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from t2i.config.section import Section
from t2i.config.towers import GivenImageConfig, TextConfig
from t2i.config.training import StartConfig
from t2i.data import DataConfig


class TextTowerConfig(Section):
    """A small transformer on byte-pair tokens that are fitted to the training captions."""

    vocabulary: int = Field(default=2048, ge=300, le=65536, description="largest number of byte pairs")
    max_tokens: int = Field(
        default=48, ge=4, le=512, description="largest number of tokens of a caption, including start and end"
    )
    width: int = Field(default=128, ge=16, multiple_of=16, description="width of a token state")
    depth: int = Field(default=2, ge=1, le=24, description="transformer blocks")
    heads: int = Field(default=4, ge=1, le=32, description="attention heads")


class ImageTowerConfig(Section):
    """A residual convolutional tower that downsamples to a 4 x 4 grid and uses all its places."""

    width: int = Field(
        default=48, ge=8, multiple_of=8, description="channels of the first stage, doubled at each halving of the side"
    )
    width_limit: int = Field(default=192, ge=8, multiple_of=8, description="largest number of channels of a stage")
    depth: int = Field(default=1, ge=1, le=8, description="residual blocks of each stage")

    def channels(self, resolution: int) -> list[int]:
        """Returns the number of channels of each stage, from the finest grid to the last one of 4 x 4."""
        return [min(self.width * 2**i, self.width_limit) for i in range((resolution // 4).bit_length() - 1)]


class BatchNegatives(Section):
    """Captions and images of the other pairs of a step."""

    kind: Literal["batch"] = Field(default="batch", description="the other pairs of the step")


class HardNegatives(Section):
    """The other pairs of a step; more similar ones have a larger weight (Robinson et al., ICLR 2021)."""

    kind: Literal["hard"] = Field(
        default="hard", description="the other pairs of the step; more similar ones have a larger weight"
    )
    hardness: float = Field(
        default=0.3, gt=0, le=4, description="the weight of a negative is exp(hardness * its logit)"
    )


class SoftNegatives(Section):
    """The other pairs of a step; captions that share words get a part of the target."""

    kind: Literal["soft"] = Field(
        default="soft", description="the other pairs of the step; captions that share words get a part of the target"
    )
    share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="probability of the target that is distributed among the other captions by shared words",
    )


class SwapNegatives(Section):
    """The other pairs of a step, and the caption with two attributes of one kind exchanged, if it has two."""

    kind: Literal["swap"] = Field(
        default="swap", description="the other pairs of the step, and the caption with two attributes exchanged"
    )
    weight: float = Field(default=0.5, gt=0, description="weight of the loss of a caption against its exchange")


NegativesConfig = BatchNegatives | HardNegatives | SoftNegatives | SwapNegatives


class ContrastiveAligner(Section):
    """Trains both towers with the contrastive loss."""

    kind: Literal["contrastive"] = Field(default="contrastive", description="trains both towers")


class ProcrustesAligner(Section):
    """Rotates the principal axes of text features onto those of image features."""

    kind: Literal["procrustes"] = Field(default="procrustes", description="a rotation between principal axes")


class _Regularised(Section):
    regularisation: float | None = Field(
        default=None,
        gt=0,
        description="added to the variances, in units of their mean; null: chosen by cross-validation",
    )


class RidgeAligner(_Regularised):
    """Predicts image features from text features."""

    kind: Literal["ridge"] = Field(default="ridge", description="predicts image features from text features")


class CCAAligner(_Regularised):
    """Canonical correlation analysis (Hotelling, 1936)."""

    kind: Literal["cca"] = Field(default="cca", description="canonical correlation analysis")
    power: float = Field(
        default=2.0,
        ge=0,
        description="weight of a direction: its correlation to this power (Gong et al., IJCV 2014); 0: equal weights",
    )


class SubspaceAligner(_Regularised):
    """Computes a basis of each side and maps the text basis onto the image basis."""

    kind: Literal["subspace"] = Field(default="subspace", description="a basis of each side, and a map between them")
    basis: Literal["pca", "lda"] = Field(
        default="pca", description="pca: principal axes; lda: axes that separate the classes of `label`"
    )
    label: str | None = Field(default=None, description="label for lda, named as in t2i eval classify")

    @model_validator(mode="after")
    def _lda_has_a_label(self) -> Self:
        if self.basis == "lda" and self.label is None:
            raise ValueError("aligner.basis=lda needs classes; name their label with aligner.label")
        if self.basis == "pca" and self.label is not None:
            raise ValueError(f"aligner.label={self.label} has no effect with aligner.basis=pca; remove it, or set lda")
        return self


class AdversarialAligner(Section):
    """Learns a rotation against a discriminator and refines it by Procrustes (MUSE, Conneau et al., ICLR 2018)."""

    kind: Literal["adversarial"] = Field(
        default="adversarial", description="a rotation learned against a discriminator"
    )
    anchors: int = Field(
        default=50,
        ge=0,
        description="number of known pairs; the other images and captions are used without their correspondence",
    )
    anchor_weight: float = Field(
        default=4.0, gt=0, description="weight of a known pair in the refinement, relative to a mutual neighbour"
    )
    regularisation: float = Field(
        default=0.03, gt=0, description="added to the variances of each side, in units of their mean"
    )
    hidden: int = Field(default=256, ge=8, description="width of the discriminator")
    refinements: int = Field(
        default=10, ge=0, description="rounds of mutual neighbours and Procrustes after the adversarial training"
    )


AlignerConfig = (
    ContrastiveAligner | ProcrustesAligner | RidgeAligner | CCAAligner | SubspaceAligner | AdversarialAligner
)
KEYS_OF_TRAINED_TOWERS = (
    "text_tower", "image_tower", "negatives", "image_weight", "kl_weight", "init_from", "freeze", "replay", "compile",
    "best_metric", "lr_warmup_steps", "weight_decay", "gradient_accumulation_steps",
)  # fmt: skip
KEYS_OF_STEPS = ("train_batch_size", "learning_rate")
ADVERSARIAL_STEPS, ADVERSARIAL_RATE = 300, 2e-4


class Config(StartConfig):
    """A dual encoder: two towers trained with the symmetric contrastive loss, or frozen encoders with maps into one space."""

    family: Literal["align"] = "align"
    data: DataConfig = DataConfig()
    aligner: Annotated[AlignerConfig, Field(discriminator="kind")] = ContrastiveAligner()
    text: TextConfig | None = Field(
        default=None, description="frozen text encoder of all aligners except contrastive; null: bow"
    )
    image: GivenImageConfig | None = Field(
        default=None, description="frozen image encoder of all aligners except contrastive; null: aligned"
    )
    text_tower: TextTowerConfig = TextTowerConfig()
    image_tower: ImageTowerConfig = ImageTowerConfig()
    negatives: Annotated[NegativesConfig, Field(discriminator="kind")] = BatchNegatives()
    image_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the squared errors of images decoded from both embeddings, which makes the dual encoder an "
        "autoencoder; 0: no image decoder",
    )
    kl_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the KL divergence, in nats per image, of a variational autoencoder; 0: decoded without noise",
    )
    embedding: int = Field(
        default=128,
        ge=8,
        description="dimensions of the shared space; with frozen encoders at most the dimensions of either",
    )
    split: Literal["train", "all"] = Field(
        default="train",
        description="`all` includes the held-out splits of shapes and emoji; use it for scorers, never to guide a generator",
    )
    validation_n: int = Field(default=1000, ge=2, description="pairs of each held-out split for Recall@K")
    train_batch_size: int = Field(
        default=256,
        ge=2,
        description="images of one micro-batch on one process; all pairs of a step are negatives of each other, "
        "whatever gradient_accumulation_steps is",
    )
    max_train_steps: int = Field(
        default=250, ge=1, description="optimizer steps of the whole run; 1 for aligners in closed form"
    )
    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate of AdamW")
    lr_warmup_steps: int = Field(
        default=20,
        ge=0,
        description="steps over which the learning rate rises linearly to its peak; a cosine falls after it",
    )
    weight_decay: float = Field(
        default=0.02, ge=0, description="weight decay of matrices; gains, biases and embeddings have none"
    )

    @property
    def is_frozen(self) -> bool:
        """True if both encoders are frozen and only maps are learned."""
        return not isinstance(self.aligner, ContrastiveAligner)

    @property
    def is_solved(self) -> bool:
        """True if the maps are computed in closed form."""
        return self.is_frozen and not isinstance(self.aligner, AdversarialAligner)

    @model_validator(mode="before")
    @classmethod
    def _frozen_towers_have_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        aligner = values.get("aligner", "contrastive")
        kind = aligner.get("kind", "contrastive") if isinstance(aligner, Mapping) else getattr(aligner, "kind", aligner)
        if kind == "contrastive":
            return values
        defaults: dict[str, Any] = {"max_train_steps": 1}
        if kind == "adversarial":
            defaults = {"max_train_steps": ADVERSARIAL_STEPS, "learning_rate": ADVERSARIAL_RATE}
        text = values.get("text") or {}
        towers = {"text": {"encoder": "bow", **text} if isinstance(text, Mapping) else text}
        return defaults | dict(values) | towers | {"image": values.get("image") or {}}

    @model_validator(mode="after")
    def _no_key_is_without_effect(self) -> Self:
        if not self.is_frozen:
            unused = [name for name in ("text", "image") if getattr(self, name) is not None]
            if unused:
                raise ValueError(
                    f"{', '.join(unused)}: no effect with aligner=contrastive, which trains its own towers; remove it, "
                    "or set aligner=cca"
                )
            if self.kl_weight and not self.image_weight:
                raise ValueError(
                    f"kl_weight={self.kl_weight:g} has no effect without an image decoder; set image_weight too, or remove it"
                )
            return self
        names = (*KEYS_OF_TRAINED_TOWERS, *KEYS_OF_STEPS * self.is_solved)
        idle = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        idle += ["data.augment"] * bool(self.data.augment)
        idle += [f"max_train_steps={self.max_train_steps}"] * (self.is_solved and self.max_train_steps != 1)
        if idle:
            raise ValueError(f"{', '.join(idle)} has no effect with aligner={self.aligner.kind}; remove it")
        return self
