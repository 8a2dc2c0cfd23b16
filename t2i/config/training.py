"""The part of a config that every training program shares. Imports no torch."""

from typing import Literal

from pydantic import Field

from t2i.config.section import Section


class TrainConfig(Section):
    """How long, on what and how often watched; the names are those of diffusers' and Accelerate's training scripts."""

    train_batch_size: int = Field(
        default=64,
        ge=1,
        description="pictures of one micro-batch on ONE process; a step sees train_batch_size x "
        "gradient_accumulation_steps x processes",
    )
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="micro-batches of one optimizer step")
    max_train_steps: int = Field(default=10_000, ge=1, description="optimizer steps of the whole run")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate")
    lr_warmup_steps: int = Field(default=100, ge=0, description="steps of linear warm-up")
    max_train_minutes: float | None = Field(
        default=None,
        gt=0,
        description="wall-clock limit; after a short measured warm-up the run fixes the steps that fit, at most "
        "max_train_steps, and keeps that number in its checkpoints; null: no limit",
    )
    seed: int = Field(default=0, ge=0, description="decides every random draw of the run")
    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        default="auto",
        description="auto: bf16 on CUDA and on a CPU with bf16 instructions, else no; "
        "fp16 is not offered, as its range overflows in GAN training",
    )
    checkpointing_steps: int = Field(default=1000, ge=1, description="a checkpoint every so many steps, and at the end")
    checkpoints_total_limit: int = Field(
        default=3, ge=2, description="intact checkpoints kept; a folder that holds a file named `keep` is never deleted"
    )
    validation_steps: int = Field(default=1000, ge=1, description="samples and scores at every so many steps")
    validation_n: int = Field(
        default=200, ge=2, description="pictures of val that a validation scores: the same ones every time"
    )
    best_metric: str | None = Field(
        default=None,
        description="score on val whose best weights are kept beside the last and sampled from: a name in the journal "
        "without val_; null: the last weights are sampled from",
    )
    log_steps: int = Field(default=50, ge=1, description="a line in journal.jsonl every so many steps")
    logging_seconds: float = Field(
        default=10.0, gt=0, description="seconds between two lines on stderr, where that is no terminal"
    )
    report_to: Literal["none", "tensorboard"] = Field(default="none", description="tracker beside journal.jsonl")
    compile: bool = Field(default=False, description="torch.compile the networks; gains on a GPU, none on a CPU")
    dataloader_num_workers: int = Field(default=0, ge=0, description="processes that decode; 0: the main one does")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="auto: CUDA, else MPS, else CPU")


class DrawingConfig(TrainConfig):
    """What the programs share that train a generator of pictures from captions."""

    validation_extractor: str | None = Field(
        default=None,
        description="address of what sees the pictures of a validation: inception:FILE, clip:FOLDER or dinov2:FOLDER, best "
        "another than the guide's; null: the embedded one, on drawn shapes",
    )
