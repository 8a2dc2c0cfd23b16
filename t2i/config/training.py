"""The part of a config that every training program shares. Imports no torch."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from t2i.config.section import Section
from t2i.config.upgrade import upgraded


class ReplayConfig(Section):
    """Data of the run before, shown again so that it is not forgotten."""

    address: str = Field(description="data whose training images are shown again, as data.address takes it")
    share: float = Field(default=0.2, gt=0, lt=1, description="share of the samples that are of this data")


class TrainConfig(Section):
    """Length, hardware and records of a run; the names are those of diffusers' and Accelerate's training scripts."""

    takes_unlabelled: ClassVar[bool] = False  # data.unlabelled has a use

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
        description="steps over which the learning rate rises linearly to its peak; a cosine falls after it",
    )
    max_train_minutes: float | None = Field(
        default=None,
        gt=0,
        description="wall-clock limit; the run times its first steps, fixes the number that fits, at most "
        "max_train_steps, and keeps that number in its checkpoints; null: no limit",
    )
    seed: int = Field(default=0, ge=0, description="seed of every random draw of the run")
    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        default="auto",
        description="auto: bf16 on CUDA and on a CPU with bf16 instructions, else no; "
        "fp16 is not offered, as its range overflows in GAN training",
    )
    checkpointing_steps: int = Field(default=1000, ge=1, description="a checkpoint every so many steps, and at the end")
    checkpointing_minutes: float | None = Field(
        default=10.0, gt=0, description="also a checkpoint when so many minutes have passed since the last; null: never"
    )
    checkpoints_total_limit: int = Field(
        default=3, ge=2, description="intact checkpoints kept; a folder that holds a file named `keep` is never deleted"
    )
    validation_steps: int = Field(
        default=1000, ge=1, description="samples and scores every so many steps, and at the end"
    )
    validation_n: int = Field(
        default=200, ge=2, description="images of val that a validation scores, always the same ones"
    )
    best_metric: str | None = Field(
        default=None,
        description="score on val whose best weights are kept beside the last and used for sampling: a name in the "
        "journal without val_; null: the last weights are used",
    )
    log_steps: int = Field(default=50, ge=1, description="a line in journal.jsonl every so many steps")
    report_to: Literal[
        "none", "tensorboard", "wandb", "trackio", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab"
    ] = Field(
        default="none", description="tracker that gets the scalars of journal.jsonl, validation scores and sample grids"
    )
    compile: bool = Field(
        default=False, description="compile the networks with torch.compile: faster on a GPU, no gain on a CPU"
    )
    dataloader_num_workers: int = Field(
        default=0, ge=0, description="processes that decode images; 0: the main process does"
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
                "it reads no captions: name them as data.address"
                if family == "vqvae"
                else "it learns from captions alone"
            )
            raise ValueError(f"data.unlabelled {unlabelled} has no use for {family}, as {how}; cgan and prior take it")
        return self


class LowRankConfig(Section):
    """Low-rank fine-tuning (LoRA): each linear layer learns a difference of this rank; all that was loaded stays frozen."""

    rank: int = Field(default=8, ge=1, description="rank of the difference of each linear layer")
    alpha: float = Field(default=16.0, gt=0, description="factor of the difference, divided by the rank")


class StartConfig(TrainConfig):
    """The part that programs share which can start from the weights of another model."""

    init_from: str | None = Field(
        default=None,
        description="run, saved model, hub id or shipped name whose weights the run starts from, as far as they fit; null: "
        "fresh weights",
    )
    freeze: tuple[str, ...] = Field(
        default=(),
        description="parts of what init_from brings that are not trained on, as model.text or discriminator.stem",
    )
    replay: ReplayConfig | None = Field(default=None, description="data of the run before, shown again; null: none")

    @property
    def replayed(self) -> tuple[str, float] | None:
        """Address and share of the replayed data."""
        return None if self.replay is None else (self.replay.address, self.replay.share)

    @model_validator(mode="after")
    def _frozen_weights_were_trained_before(self) -> Self:
        if self.freeze and self.init_from is None:
            raise ValueError(f"freeze {', '.join(self.freeze)} keeps fresh weights as they are; name init_from too")
        return self


class DrawingConfig(StartConfig):
    """The part that every program shares which trains a generator of images from captions."""

    validation_extractor: str | None = Field(
        default=None,
        description="address of the extractor that scores validations: inception:FILE, clip:FOLDER or dinov2:FOLDER, "
        "preferably another than the guide's; null: the embedded one, on rendered shapes",
    )
