"""Config of the reader. Imports no torch, so that config errors are reported quickly."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from t2i.config.section import Section
from t2i.config.towers import TextConfig, TunableImageConfig
from t2i.config.training import StartConfig
from t2i.data import DataConfig


class TasksConfig(Section):
    """Weights of the tasks' losses; the reader does not learn a task of weight 0."""

    caption: float = Field(default=1.0, ge=0, description="weight of the captions' loss, in nats per token")
    answer: float = Field(default=0.0, ge=0, description="weight of the answers' loss, in nats per question")
    label: float = Field(default=0.0, ge=0, description="weight of the loss of the images' classes, in nats per image")

    @property
    def answers(self) -> bool:
        """True if the reader learns to choose answers: to questions, or classes."""
        return bool(self.answer or self.label)


class OwnImageConfig(Section):
    """A residual convolutional tower that is trained with the reader."""

    encoder: Literal["own"] = Field(default="own", description="trained with the reader")
    width: int = Field(
        default=32, ge=8, multiple_of=8, description="channels at full size, doubled at each halving of the side"
    )
    width_limit: int = Field(default=128, ge=8, multiple_of=8, description="largest number of channels of a stage")
    depth: int = Field(default=1, ge=1, le=8, description="residual blocks per stage")
    grid: Literal[4, 8, 16] = Field(default=8, description="cells per side that the image is divided into")
    path: ClassVar[None] = None
    trained: ClassVar[bool] = True


class OwnTextConfig(Section):
    """A small transformer over the words of questions, which is trained with the reader."""

    encoder: Literal["own"] = Field(default="own", description="trained with the reader")
    depth: int = Field(default=2, ge=1, le=24, description="transformer blocks")
    path: ClassVar[None] = None


class DecoderConfig(Section):
    """GPT-2's decoder with cross-attention to the cells of the image, which writes captions."""

    path: str | None = Field(
        default=None, description="a GPT-2 folder to start from, which fixes size and tokens; null: from scratch"
    )
    depth: int = Field(default=3, ge=1, le=48, description="blocks")
    heads: int = Field(default=4, ge=1, le=32, description="attention heads")


class FusionConfig(Section):
    """Combines cells and question for the answer."""

    kind: Literal["sum", "gated", "concat", "cross", "co", "bilstm"] = Field(
        default="cross", description="a name in t2i.reader.fusion.FUSIONS"
    )
    depth: int = Field(default=2, ge=1, le=12, description="number of layers, or of blocks for cross and co")
    heads: int = Field(default=4, ge=1, le=32, description="attention heads of cross and co")


class Config(StartConfig):
    """A reader, which captions images, scores captions and answers questions."""

    family: Literal["reader"] = "reader"
    data: DataConfig = DataConfig()
    tasks: TasksConfig = TasksConfig()
    label: str | None = Field(
        default=None,
        description="name of the label that tasks.label learns: class, label, annotation, shape, ...; null: none",
    )
    image: Annotated[OwnImageConfig | TunableImageConfig, Field(discriminator="encoder")] = OwnImageConfig()
    text: Annotated[OwnTextConfig | TextConfig, Field(discriminator="encoder")] = OwnTextConfig()
    decoder: DecoderConfig = DecoderConfig()
    fusion: FusionConfig = FusionConfig()
    width: int = Field(default=128, ge=16, multiple_of=16, description="width of words, cells and fusion layers")
    vocabulary: int = Field(default=2048, ge=300, le=65536, description="maximum number of byte-pair tokens")
    max_tokens: int = Field(
        default=48, ge=4, le=512, description="maximum tokens of a caption or question, including start and end"
    )
    answers: int = Field(
        default=3000, ge=2, description="number of answers to choose from: the most frequent ones of the training data"
    )
    questions_per_image: int = Field(default=4, ge=1, description="questions about each image in a step")
    split: Literal["train", "all"] = Field(
        default="train",
        description="`all` includes the held-out combinations of shapes: for judging images, never for guiding a generator",
    )
    validation_n: int = Field(default=500, ge=2, description="images of each held-out split that a validation uses")
    max_train_steps: int = Field(default=2000, ge=1, description="optimizer steps of the whole run")
    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(
        default=0.02, ge=0, description="weight decay of matrices; gains, biases and embeddings have none"
    )

    @model_validator(mode="after")
    def _has_something_to_do(self) -> Self:
        if not self.tasks.caption and not self.tasks.answers:
            raise ValueError(
                "tasks.caption, tasks.answer and tasks.label are all 0, so there is nothing to learn; raise one of them"
            )
        if (self.label is None) == bool(self.tasks.label):
            fix = "set tasks.label=1 too, or remove it" if self.label else "name the label, as in label=class"
            raise ValueError(f"tasks.label is {self.tasks.label:g} and label is {self.label or 'null'}; {fix}")
        if self.replay is not None:
            raise ValueError(
                f"replay.address {self.replay.address} has no effect on a reader, whose questions are of one data set; remove it"
            )
        for name, heads in (("decoder", self.decoder.heads), ("fusion", self.fusion.heads)):
            if self.width % heads:
                raise ValueError(f"width {self.width} is not a multiple of {name}.heads={heads}; change one of the two")
        return self
