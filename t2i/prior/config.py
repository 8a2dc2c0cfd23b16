"""Config of the autoregressive prior. Imports no torch, so that a wrong key is reported at once."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from t2i.config.section import Section
from t2i.config.training import DrawingConfig, LowRankConfig, PrivacyConfig
from t2i.data import DataConfig
from t2i.text import TextConfig

FITTED = ("bow", "tfidf", "word2vec", "static")  # text encoders whose words are those of the training captions


class TokenizerConfig(Section):
    """The tokenizer that turns images into codes and back."""

    path: str = Field(
        default="runs/vqvae",
        description="run of t2i train vqvae, or a run, saved or shipped model that holds a tokenizer",
    )


class ModelConfig(Section):
    """The transformer. The codes, their grid and the widths of the text come from the tokenizer and the encoder."""

    width: int = Field(default=128, ge=16, multiple_of=16, description="channels of the residual stream")
    depth: int = Field(default=4, ge=1, le=64, description="transformer blocks")
    heads: int = Field(default=4, ge=1, le=64, description="attention heads; width must be a multiple of 4 x heads")
    mlp_width: int = Field(
        default=352,
        ge=16,
        multiple_of=16,
        description="hidden channels of SwiGLU; 8/3 of the width costs as much as a usual MLP",
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout on the output of attention and MLP")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "ModelConfig":
        if self.width % (4 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 4 x heads = {4 * self.heads}")
        return self


class PriorLossConfig(Section):
    """Cross-entropy of the codes, and four guards against learning small data by heart."""

    label_smoothing: float = Field(
        default=0.1, ge=0, lt=1, description="share of the target that is spread over all codes"
    )
    token_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="share of codes that are hidden from the input in training"
    )
    caption_dropout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of captions that are replaced by the learned null caption, for guidance",
    )
    text_noise: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of the noise on text features in training, beside their own: near words are then read "
        "alike, so that a new caption gives what a known one near it would",
    )


class SamplingConfig(Section):
    """Defaults of sampling, which a caller may change."""

    guidance: float = Field(
        default=2.0,
        ge=0,
        description="strength of classifier-free guidance; 1: none, above 1: away from the null caption",
    )
    guidance_schedule: Literal["constant", "power_cosine"] = Field(
        default="constant", description="constant, or rising from 1 to `guidance` over the image (power_cosine, RAR)"
    )
    guidance_power: float = Field(
        default=2.5, gt=0, description="power_cosine only: the higher, the later guidance rises"
    )
    guidance_until: float = Field(
        default=1.0, ge=0, le=1, description="share of the tokens after which guidance is off"
    )
    temperature: float = Field(default=1.0, ge=0, description="divisor of the logits; 0 takes the likeliest code")
    top_k: int | None = Field(default=None, ge=1, description="sample from the k likeliest codes; null: from all")
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="sample from the fewest likeliest codes that together have this probability; 1: from all",
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        description="decoding steps, each of a group of tokens in parallel, which needs order=random; null: one token a step",
    )
    group_schedule: Literal["arccos", "linear"] = Field(
        default="arccos", description="sizes of the groups: few tokens first and many last (arccos), or equal (linear)"
    )
    decoding_order: Literal["random", "raster"] = Field(
        default="random",
        description="order of a model trained with order=random: another for each seed, or rows from the top (raster)",
    )


class Config(DrawingConfig):
    """A transformer prior over the codes of a tokenizer."""

    takes_unlabelled: ClassVar[bool] = True

    family: Literal["prior"] = "prior"
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    order: Literal["raster", "random"] = Field(
        default="raster",
        description="raster: rows from the top, the fastest to train; random: any order, for parallel groups and inpainting",
    )
    flip: bool = Field(
        default=False, description="mirror training images at random; switched off where captions say left or right"
    )
    model: ModelConfig = ModelConfig()
    loss: PriorLossConfig = PriorLossConfig()
    sampling: SamplingConfig = SamplingConfig()
    lora: LowRankConfig | None = Field(
        default=None, description="low-rank fine-tuning of the weights of init_from; null: all weights are trained"
    )
    privacy: PrivacyConfig | None = Field(
        default=None, description="differentially private training; null: without, faster and better"
    )
    train_batch_size: int = Field(default=64, ge=1, description="images of one micro-batch on one process")
    max_train_steps: int = Field(default=10_000, ge=1, description="optimizer steps of the whole run")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(
        default=0.05, ge=0, description="weight decay of matrices; gains and embeddings have none"
    )
    best_metric: str | None = Field(
        default="bits_per_token",
        description="score on val whose best weights are kept beside the last and used for sampling, as bits_per_token or "
        "strict; null: the last weights are used",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="validations without a better best_metric after which the run ends; null: it never ends early",
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="keep only the input of each block for its gradients and compute the rest again: a third more time, and "
        "memory for far larger batches; the weights come out bit for bit the same",
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="full: each process keeps its part of weights, gradients, moments and average only (FSDP), where a model "
        "is too large for one; none: each keeps all",
    )
    ema_halflife_images: int = Field(
        default=50_000,
        ge=1,
        description="half-life of the averaged model, in images; at most 1/20 of the images seen so far",
    )

    @model_validator(mode="after")
    def _groups_need_any_order(self) -> "Config":
        if self.sampling.steps is not None and self.order == "raster":
            raise ValueError(
                f"sampling.steps {self.sampling.steps} draws groups, and order is raster; set order=random"
            )
        return self

    @model_validator(mode="after")
    def _low_rank_adapts_loaded_weights(self) -> "Config":
        if self.lora is not None and self.init_from is None:
            raise ValueError(
                f"lora (rank {self.lora.rank}) adapts loaded weights, and init_from is null; name a model there"
            )
        if self.lora is not None and self.freeze:
            raise ValueError(
                f"lora freezes all loaded weights, so freeze {', '.join(self.freeze)} has no effect; drop one"
            )
        if self.lora is not None and self.sharding != "none":
            raise ValueError(
                f"lora trains few weights, which are not sharded, and sharding is {self.sharding}; set sharding=none"
            )
        return self

    @model_validator(mode="after")
    def _privacy_covers_every_use(self) -> "Config":
        """Refuses other uses of the training images, which the privacy account does not cover."""
        if self.privacy is None:
            return self
        others = {
            "data.unlabelled": self.data.unlabelled,
            "replay": self.replay and self.replay.address,
            "flip": self.flip or None,
            "compile": self.compile or None,
            "sharding": None if self.sharding == "none" else self.sharding,
            "gradient_accumulation_steps": None
            if self.gradient_accumulation_steps == 1
            else self.gradient_accumulation_steps,
            "text.encoder": self.text.encoder if self.text.encoder in FITTED else None,
        }
        for name, value in others.items():
            if value is not None:
                fix = "take a published encoder: clip, t5, bert, gpt2" if name == "text.encoder" else "leave it out"
                raise ValueError(f"{name} {value} is not covered by the privacy account; {fix}")
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
