"""The config keys that training programs share. Imports no torch."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from t2i.config.options import SEEDS
from t2i.config.section import Section
from t2i.config.upgrade import upgraded


class ReplayConfig(Section):
    """Data of an earlier run that is mixed into training, so that it is not forgotten."""

    address: str = Field(description="data whose training images are mixed in, in the form of data.address")
    share: float = Field(default=0.2, gt=0, lt=1, description="share of the samples that come from this data")


# why a family cannot be trained with differential privacy, and what can
NOT_PRIVATE = {
    "vqvae": "its codebook is a running average of images, to which no noise is added; train it on other data, and a prior over "
    "its codes with privacy",
    "align": "its loss compares the images of a batch with each other, so that no image has a gradient of its own; take a "
    "published encoder",
    "cgan": "its critic compares images with each other and leads the generator, so that no image has a gradient of its own; "
    "train a prior",
    "cvae": "its critic also learns from all images, without noise; train a prior",
    "reader": "private training is only implemented for a prior",
}


class PrivacyConfig(Section):
    """Differentially private training: clips the gradient of each image and adds noise (DP-SGD, Abadi et al., 2016)."""

    noise_multiplier: float = Field(
        default=1.0, ge=0.3, le=100, description="standard deviation of the noise, in units of max_grad_norm"
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="length to which the gradient of each image is clipped")
    delta: float = Field(
        default=1e-5, gt=0, lt=0.1, description="probability that the bound epsilon fails; below 1 / images"
    )


class TrainConfig(Section):
    """Length, hardware and logging of a run; keys are named as in the training scripts of diffusers and Accelerate."""

    takes_unlabelled: ClassVar[bool] = False  # True if the family can use data.unlabelled

    @model_validator(mode="before")
    @classmethod
    def _only_a_prior_is_private(cls, values: Any) -> Any:
        family = getattr(cls.model_fields.get("family"), "default", None)
        if isinstance(values, dict) and values.get("privacy") is not None and family in NOT_PRIVATE:
            raise ValueError(f"privacy is not supported for {family}: {NOT_PRIVATE[family]}")
        return values

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, values: Any) -> Any:
        family = cls.model_fields.get("family")
        return upgraded(family.default, values) if isinstance(values, dict) and family is not None else values

    train_batch_size: int = Field(
        default=64,
        ge=1,
        description="images of one micro-batch on one process; a step sees train_batch_size x "
        "gradient_accumulation_steps x processes",
    )
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="micro-batches of one optimizer step")
    max_train_steps: int = Field(default=10_000, ge=1, description="optimizer steps of the whole run")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate")
    lr_warmup_steps: int = Field(
        default=100,
        ge=0,
        description="steps over which the learning rate rises linearly to its peak, before it falls along a cosine",
    )
    max_train_minutes: float | None = Field(
        default=None,
        gt=0,
        description="wall-clock limit; the run times its first steps, fixes the number of steps that fit (at most "
        "max_train_steps) and stores it in its checkpoints; null: no limit",
    )
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="seed of all random draws of the run")
    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        default="auto",
        description="auto: bf16 on CUDA and on a CPU with bf16 instructions, else no; "
        "fp16 is not offered, as its range overflows in GAN training",
    )
    checkpointing_steps: int = Field(
        default=1000, ge=1, description="steps between checkpoints; one is also saved at the end"
    )
    checkpointing_minutes: float | None = Field(
        default=10.0,
        gt=0,
        description="also save a checkpoint if the last is older than this many minutes; null: never",
    )
    checkpoints_total_limit: int = Field(
        default=3,
        ge=2,
        description="intact checkpoints to keep; a folder that holds a file named `keep` is never deleted",
    )
    validation_steps: int = Field(
        default=1000, ge=1, description="steps between validations, which sample and score; one is also done at the end"
    )
    validation_n: int = Field(
        default=200, ge=2, description="images of val that a validation uses, always the same ones"
    )
    best_metric: str | None = Field(
        default=None,
        description="score on val by which the best weights are kept and used for sampling: a name in the journal without "
        "val_; null: the last weights are used",
    )
    log_steps: int = Field(default=50, ge=1, description="steps between lines in journal.jsonl")
    report_to: Literal[
        "none", "tensorboard", "wandb", "trackio", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab"
    ] = Field(default="none", description="tracker that receives the scalars of journal.jsonl and sample grids")
    compile: bool = Field(
        default=False, description="compile the networks with torch.compile: faster on a GPU, no gain on a CPU"
    )
    dataloader_num_workers: int = Field(
        default=0, ge=0, description="processes that decode images; 0: the main process decodes them"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="auto: CUDA if there is a GPU, else MPS, else the CPU"
    )

    @property
    def mean_cost(self) -> float:
        """Mean time of a step over the whole run, in units of the steps that it begins with."""
        return 1.0

    @model_validator(mode="after")
    def _unlabelled_images_are_for_some(self) -> Self:
        unlabelled = getattr(getattr(self, "data", None), "unlabelled", None)
        if unlabelled is not None and not self.takes_unlabelled:
            family = getattr(self, "family", "")
            how = (
                "which ignores captions: name the images as data.address"
                if family == "vqvae"
                else "which needs a caption for every image"
            )
            raise ValueError(
                f"data.unlabelled {unlabelled or repr(unlabelled)} has no effect on {family}, {how}; cgan and prior use it"
            )
        return self


class LowRankConfig(Section):
    """Low-rank fine-tuning (LoRA): each linear layer learns a difference of this rank; all that was loaded stays frozen."""

    rank: int = Field(default=8, ge=1, description="rank of the difference of each linear layer")
    alpha: float = Field(default=16.0, gt=0, description="factor of the difference, divided by the rank")


class StartConfig(TrainConfig):
    """The config keys of programs that can start from the weights of another model."""

    init_from: str | None = Field(
        default=None,
        description="run, saved model, hub id or shipped name whose weights the run starts from, as far as they fit; null: "
        "random weights",
    )
    freeze: tuple[str, ...] = Field(
        default=(),
        description="parts loaded by init_from that stay frozen, e.g. model.text or discriminator.stem",
    )
    replay: ReplayConfig | None = Field(default=None, description="data of an earlier run to mix in; null: none")

    @property
    def replayed(self) -> tuple[str, float] | None:
        """Address and share of the replayed data."""
        return None if self.replay is None else (self.replay.address, self.replay.share)

    @model_validator(mode="after")
    def _frozen_weights_were_trained_before(self) -> Self:
        if self.freeze and self.init_from is None:
            raise ValueError(f"freeze {', '.join(self.freeze)} would freeze random weights; set init_from too")
        return self


class DrawingConfig(StartConfig):
    """The config keys of programs that train a generator of images from captions."""

    validation_extractor: str | None = Field(
        default=None,
        description="address of the extractor that scores validations: inception:FILE, clip:FOLDER or dinov2:FOLDER, "
        "preferably not the guide's network; null: the embedded one, for rendered shapes",
    )
