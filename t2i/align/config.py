"""Config of the dual encoder. Imports no torch, so that a wrong key is reported at once."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from t2i.config.section import Section
from t2i.config.towers import GivenImageConfig, TextConfig
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


class ContrastiveAligner(Section):
    """Both towers are trained, against each other."""

    kind: Literal["contrastive"] = Field(default="contrastive", description="trains both towers")


class ProcrustesAligner(Section):
    """Frozen features in their principal axes, and the rotation of one onto the other."""

    kind: Literal["procrustes"] = Field(default="procrustes", description="a rotation between principal axes")


class _Regularised(Section):
    regularisation: float | None = Field(
        default=None,
        gt=0,
        description="added to the variances, in units of their mean; null: chosen on every fifth pair",
    )


class RidgeAligner(_Regularised):
    """Image features predicted from text features."""

    kind: Literal["ridge"] = Field(default="ridge", description="image features predicted from text features")


class CCAAligner(_Regularised):
    """Canonical correlation analysis (Hotelling, 1936)."""

    kind: Literal["cca"] = Field(default="cca", description="canonical correlation analysis")
    power: float = Field(
        default=2.0,
        ge=0,
        description="each direction weighs its correlation to this power (Gong et al., IJCV 2014); 0: all alike",
    )


class SubspaceAligner(_Regularised):
    """A basis of each side, then one mapped onto the other from pairs."""

    kind: Literal["subspace"] = Field(default="subspace", description="a basis of each side, mapped from pairs")
    basis: Literal["pca", "lda"] = Field(
        default="pca", description="principal axes, or the axes that tell the classes of `label` apart"
    )
    label: str | None = Field(default=None, description="name of the label, as t2i eval classify takes it; for lda")

    @model_validator(mode="after")
    def _has_classes_to_tell_apart(self) -> Self:
        if self.basis == "lda" and self.label is None:
            raise ValueError("aligner.basis=lda tells classes apart; name their label with aligner.label")
        if self.basis == "pca" and self.label is not None:
            raise ValueError(f"aligner.label={self.label} has no effect with aligner.basis=pca; remove it, or set lda")
        return self


class AdversarialAligner(Section):
    """A rotation that a discriminator cannot see, then refined by Procrustes (MUSE, Conneau et al., ICLR 2018)."""

    kind: Literal["adversarial"] = Field(default="adversarial", description="a rotation against a discriminator")
    anchors: int = Field(
        default=50, ge=0, description="pairs that are known; of the others image and caption are parted"
    )
    anchor_weight: float = Field(
        default=4.0, gt=0, description="weight of a known pair in the refinement against one that is found"
    )
    regularisation: float = Field(default=0.03, gt=0, description="as of cca, for the variances of each side")
    hidden: int = Field(default=256, ge=8, description="width of the discriminator")
    refinements: int = Field(default=10, ge=0, description="rounds of mutual neighbours and Procrustes after the game")


AlignerConfig = (
    ContrastiveAligner | ProcrustesAligner | RidgeAligner | CCAAligner | SubspaceAligner | AdversarialAligner
)
OF_TRAINED_TOWERS = (
    "text_tower", "image_tower", "negatives", "init_from", "freeze", "replay", "compile", "best_metric", "lr_warmup_steps",
    "weight_decay", "gradient_accumulation_steps",
)  # fmt: skip
OF_STEPS = ("train_batch_size", "learning_rate")
STEPS_OF_A_GAME, RATE_OF_A_GAME = 300, 2e-4


class Config(StartConfig):
    """A dual encoder trained with the symmetric contrastive loss, or frozen features that are brought together."""

    family: Literal["align"] = "align"
    data: DataConfig = DataConfig()
    aligner: Annotated[AlignerConfig, Field(discriminator="kind")] = ContrastiveAligner()
    text: TextConfig | None = Field(
        default=None, description="frozen text encoder of the other aligners than contrastive; null: bow"
    )
    image: GivenImageConfig | None = Field(
        default=None, description="frozen image tower of the other aligners than contrastive; null: aligned"
    )
    text_tower: TextTowerConfig = TextTowerConfig()
    image_tower: ImageTowerConfig = ImageTowerConfig()
    negatives: Annotated[NegativesConfig, Field(discriminator="kind")] = BatchNegatives()
    embedding: int = Field(
        default=128,
        ge=8,
        description="dimensions that images and captions share; of frozen features at most as many as either side has",
    )
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
    max_train_steps: int = Field(
        default=250, ge=1, description="optimizer steps of the whole run; 1 of an aligner that is solved"
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
        """True where both towers are frozen and the space between them is learned."""
        return not isinstance(self.aligner, ContrastiveAligner)

    @property
    def is_solved(self) -> bool:
        """True where that is done in closed form."""
        return self.is_frozen and not isinstance(self.aligner, AdversarialAligner)

    @model_validator(mode="before")
    @classmethod
    def _frozen_towers_have_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = values.get("aligner", "contrastive")
        kind = given.get("kind", "contrastive") if isinstance(given, Mapping) else getattr(given, "kind", given)
        if kind == "contrastive":
            return values
        is_game = kind == "adversarial"
        length = (
            {"max_train_steps": STEPS_OF_A_GAME, "learning_rate": RATE_OF_A_GAME} if is_game else {"max_train_steps": 1}
        )
        text = values.get("text") or {}
        towers = {"text": {"encoder": "bow", **text} if isinstance(text, Mapping) else text}
        return length | dict(values) | towers | {"image": values.get("image") or {}}

    @model_validator(mode="after")
    def _no_key_is_without_effect(self) -> Self:
        if not self.is_frozen:
            given = [name for name in ("text", "image") if getattr(self, name) is not None]
            if given:
                raise ValueError(
                    f"{', '.join(given)}: no effect with aligner=contrastive, which trains its own towers; remove what is there, "
                    "or set aligner=cca"
                )
            return self
        names = (*OF_TRAINED_TOWERS, *OF_STEPS * self.is_solved)
        idle = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        idle += ["data.augment"] * bool(self.data.augment)
        idle += [f"max_train_steps={self.max_train_steps}"] * (self.is_solved and self.max_train_steps != 1)
        if idle:
            raise ValueError(f"{', '.join(idle)} has no effect with aligner={self.aligner.kind}; remove it")
        return self
