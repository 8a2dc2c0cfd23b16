"""Config of the autoregressive prior. Imports no torch, so that a wrong key is reported at once."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from t2i.config.section import Section
from t2i.config.training import DrawingConfig
from t2i.data import DataConfig
from t2i.text import TextConfig


class TokenizerConfig(Section):
    """Which tokenizer turns pictures into codes and back."""

    path: str = Field(default="runs/vqvae", description="run directory of a trained tokenizer (t2i train vqvae)")


class ModelConfig(Section):
    """The transformer. The codes, their grid and the widths of the text come from the tokenizer and the encoder."""

    width: int = Field(default=128, ge=16, multiple_of=16, description="channels of the residual stream")
    depth: int = Field(default=4, ge=1, le=64, description="blocks")
    heads: int = Field(default=4, ge=1, le=64, description="attention heads; width / heads is a multiple of 4")
    mlp_width: int = Field(
        default=352, ge=16, multiple_of=16, description="hidden channels of SwiGLU; 8/3 of the width costs as usual"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout of what a block adds to the residual stream")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "ModelConfig":
        if self.width % (4 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 4 x heads = {4 * self.heads}")
        return self


class LossConfig(Section):
    """Cross-entropy of the codes and what keeps small data from being memorised."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=1, description="share of the target spread over all codes")
    token_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="share of codes hidden from the model as input in training"
    )
    caption_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="share of captions replaced by the learned null caption, for guidance"
    )


class SamplingConfig(Section):
    """How codes are drawn, unless the caller says otherwise."""

    guidance: float = Field(default=2.0, ge=0, description="1: none; above 1: away from the null caption")
    guidance_schedule: Literal["constant", "power_cosine"] = Field(
        default="constant", description="power_cosine rises from 1 to `guidance` over the picture (RAR)"
    )
    guidance_power: float = Field(default=2.5, gt=0, description="power_cosine: the higher, the later it rises")
    guidance_until: float = Field(
        default=1.0, ge=0, le=1, description="guidance is off once this share of the tokens is drawn"
    )
    temperature: float = Field(default=1.0, ge=0, description="divides the logits; 0 takes the likeliest code")
    top_k: int | None = Field(default=None, ge=1, description="draw from the k likeliest codes; null: from all")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="draw from the fewest likeliest codes that hold this probability; 1: all"
    )
    steps: int | None = Field(
        default=None, ge=1, description="parallel groups that are drawn; null: one token a step; only for order random"
    )
    group_schedule: Literal["arccos", "linear"] = Field(
        default="arccos", description="sizes of the groups: arccos draws few tokens first and many last; linear equal"
    )
    decoding_order: Literal["random", "raster"] = Field(
        default="random", description="random: an order for each seed; raster: rows from the top; only for order random"
    )


class Config(DrawingConfig):
    """A transformer prior over the codes of a tokenizer."""

    family: Literal["prior"] = "prior"
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    order: Literal["raster", "random"] = Field(
        default="raster",
        description="raster: rows from the top, the fastest to train; random: any order, parallel groups, inpainting",
    )
    flip: bool = Field(
        default=False, description="mirror training pictures at random; off by itself where captions say left or right"
    )
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    sampling: SamplingConfig = SamplingConfig()
    train_batch_size: int = Field(default=64, ge=1, description="pictures a micro-batch on each process")
    max_train_steps: int = Field(default=10_000, ge=1, description="optimiser steps")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate of AdamW")
    lr_warmup_steps: int = Field(default=100, ge=0, description="steps of linear warm-up")
    lr_final_factor: float = Field(default=0.05, ge=0, le=1, description="the cosine ends at this share of the peak")
    weight_decay: float = Field(default=0.05, ge=0, description="of matrices; none on gains and embeddings")
    adam_beta2: float = Field(default=0.95, ge=0, lt=1, description="of AdamW (beta1 is 0.9)")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients longer than this are shortened to it")
    best_metric: str | None = Field(
        default="bits_per_token",
        description="score on val whose best weights are kept beside the last and sampled from, as bits_per_token or "
        "strict; null: the last weights are sampled from",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop after so many validations without a better best_metric; null: never, the best is still the one kept",
    )
    ema_halflife_images: int = Field(default=50_000, ge=1, description="half-life of the averaged model, in pictures")
    ema_ramp: float = Field(default=0.05, ge=0, description="the half-life is at most this share of the pictures seen")

    @model_validator(mode="after")
    def _groups_need_any_order(self) -> "Config":
        if self.sampling.steps is not None and self.order == "raster":
            raise ValueError(
                f"sampling.steps {self.sampling.steps} draws groups, and order is raster; set order=random"
            )
        return self

    @model_validator(mode="after")
    def _patience_waits_for_something(self) -> "Config":
        if self.patience is not None and self.best_metric is None:
            raise ValueError(f"patience {self.patience} waits for a better best_metric, and that is null; name one")
        return self

    @field_validator("data")
    @classmethod
    def _codes_are_computed_once(cls, value: DataConfig) -> DataConfig:
        if value.augment:
            names = ", ".join(value.augment)
            raise ValueError(f"augment is {names}, but a prior's codes are computed once; leave it empty, or use flip")
        return value
