"""Options of the programs that score. Imports no torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, ValidationInfo, model_validator

from t2i.config.options import SEEDS, Options, argument, option, split_commas
from t2i.errors import InputError
from t2i.extractors import Resize
from t2i.sampling.options import OF_THE_FAMILY, Sampling

Names = Annotated[tuple[str, ...], BeforeValidator(split_commas)]


class ExtractorOptions(Options):
    """Weights of frozen networks that see images, in addition to the embedded scorer."""

    panel: ClassVar[str] = "Extractors"

    inception: Path | None = option(
        None,
        "State dict of the FID Inception, for `fid` and `kid` (a tokenizer's `rfid`); auto: the published file.",
        metavar="FILE",
    )
    clip: Path | None = option(None, "A CLIP model, for the CLIP score.", metavar="DIR")
    dinov2: Path | None = option(None, "A DINOv2 model, for `fd-dinov2`.", metavar="DIR")
    scorer: Path | None = option(None, "An align run to score with instead of the embedded scorer.", metavar="DIR")
    resize: Resize = option("clean", "How images are resized for Inception and DINOv2.")


class ScoringOptions(ExtractorOptions):
    """Options of every program that computes metrics of images.

    Attributes:
        data: address of the captioned images; None: the training data of the run.
        n: None: 1,000 images for a run, or fewer if there are fewer; all images of a folder or file.
        metrics: names of scores without N (`fid-shapes`); `faithfulness` for all its aspects, `precision` for that with
            every extractor, `all`; None: the usual metrics that apply.
        seed: seed of noise, shuffles and bootstrap; it does not choose the images.
        force: scores even if the rules forbid it: with an encoder that took part in the training, or too few images.
    """

    data: str | None = option(
        None, "Captioned images to score on; default: the training data of the run.", metavar="ADDRESS"
    )
    split: str | None = option(None, "Split of the data: val (default), test or heldout.")
    n: int | None = option(
        None, "Images to score; default: 1,000 for a run, all of a folder.", metavar="N", short="-n", ge=1
    )
    metrics: Names | None = option(None, "Metrics; default: all that apply.", metavar="A,B", commas=True)
    seed: int = option(0, "Seed of noise, shuffled captions and bootstrap.", ge=0, lt=SEEDS)
    force: bool = option(False, "Score even where the protocol advises against it.")
    allow_leak: bool = option(False, "Score a run on its training data; the scores are marked.")
    out: Path | None = option(None, "JSON file of the scores; default: in the run.", metavar="FILE")
    reader: Path | None = option(
        None, "A run of t2i train reader, for `caption-likelihood` and `questions`.", metavar="DIR"
    )
    questions: Path | None = option(
        None, "With --reader: questions about captions, a TIFA (.json) or DSG (.csv) file.", metavar="FILE"
    )

    @property
    def named(self) -> str | None:
        """Returns the name of the protocol in `t2i.scoring.protocols`, if any."""
        return None

    @model_validator(mode="after")
    def _questions_need_a_reader(self) -> Self:
        if self.questions is not None and self.reader is None:
            raise InputError(f"--questions {self.questions} has no effect without a reader; name one with --reader")
        return self


class ScoreOptions(ScoringOptions, Sampling):
    """Score a run on held-out captions, or images against others.

    Several processes share the work under torchrun.
    """

    target: str = argument("A run, or images: a folder, a .tar or an .npz.", metavar="TARGET")
    against: str | None = option(
        None, "Instead of --data: images, their statistics (t2i eval reference) or a run.", metavar="PLACE"
    )
    prompts: Path | None = option(
        None, "Prompts for a run: a .txt, .jsonl or .tsv (PartiPrompts) file.", metavar="FILE"
    )
    protocol: str | None = option(None, "coco-30k, cub-test, flickr30k-karpathy or shapes-heldout.", metavar="NAME")
    resolution: int | None = option(
        None, "Pixels per side of the real images; default: those of the generated ones.", metavar="R", ge=16
    )
    reranker: str | None = option(
        None,
        "With --best-of: an align run, a reader or clip:DIR that selects, instead of the embedded scorer.",
        metavar="DIR",
    )
    skip_broken: bool = option(False, "Skip images that cannot be decoded; the scores record their number.")
    save_features: Path | None = option(
        None, "Store features in this .safetensors file, and reuse those that it holds.", metavar="FILE"
    )

    @property
    def named(self) -> str | None:
        return self.protocol

    @model_validator(mode="after")
    def _refuse_what_has_no_effect(self) -> Self:
        if self.protocol is not None:
            refuse_ignored({"--against": self.against, "--prompts": self.prompts}, f"with --protocol {self.protocol}")
        if self.against is not None or self.prompts is not None:
            other = f"--against {self.against}" if self.against else f"--prompts {self.prompts}"
            refuse_ignored({"--data": self.data}, f"with {other}")
        return self


class ReferenceOptions(ExtractorOptions):
    """Compute statistics of real images once, to score any number of models against."""

    data: str = argument("Captioned data, or a folder, .tar or .npz of images.", metavar="DATA")
    out: Path = option(..., "The statistics: a .safetensors file.", metavar="FILE")
    split: str = option("val", "Split of the data.")
    n: int | None = option(None, "Number of images; default as in t2i eval score.", metavar="N", short="-n", ge=2)
    resolution: int | None = option(
        None, "Pixels per side of a data set's images; without it, images are not resized.", metavar="R", ge=16
    )
    embedded: bool = option(False, "Add statistics of the embedded scorer.")
    save_features: bool = option(False, "Store the features too, for KID, precision and similar metrics.")
    skip_broken: bool = option(False, "Skip images that cannot be decoded.")


class CompareOptions(Options):
    """Compare score files: differences of protocol, and tests of differences of scores."""

    scores: tuple[Path, ...] = argument("JSON files of t2i eval score.", metavar="SCORES")


class CaptionsOptions(Options):
    """Score captions against references with BLEU-4 and CIDEr-D, and the answers of a reader."""

    file: Path = argument(
        "A JSONL file with candidate and references on each line, or a run of t2i train reader.",
        metavar="FILE|RUN",
    )
    data: str | None = option(None, "For a reader: captioned images; default: its training data.", metavar="ADDRESS")
    split: str | None = option(None, "For a reader: split of the data: val (default), test or heldout.")
    n: int | None = option(None, "For a reader: number of images; default: 1,000.", metavar="N", short="-n", ge=2)
    beams: int = option(1, "For a reader: beams of the search.", metavar="N", ge=1, le=64)
    out: Path | None = option(None, "JSON file of the scores; default: only print the table.", metavar="FILE")


class TokenizerOptions(ScoringOptions):
    """Score the reconstructions of a tokenizer."""

    run: Path = argument("A run of t2i train vqvae.", metavar="RUN")
    split: str = option("val", "Split of the data: val, test or heldout.")
    n: int | None = option(None, "Number of images; default: 1,000.", metavar="N", short="-n", ge=2)
    lpips: Path | None = option(None, "VGG16 weights of torchvision, for LPIPS.", metavar="FILE")


Number = float | int | None  # None: the setting is off


def numbers(text: Any, info: ValidationInfo) -> Any:
    """Parses `1,1.5,2` as (1.0, 1.5, 2.0)."""
    return _values(text, info, float, "number; write --guidance 1,1.5,2")


def whole_numbers(text: Any, info: ValidationInfo) -> Any:
    """Parses `50,100,all` as (50, 100, None)."""
    fix = "whole number or all; write --top-k 50,100,all"
    return _values(text, info, lambda word: None if word == "all" else int(word), fix)


def _values(text: Any, info: ValidationInfo, read: Callable[[str], Number], fix: str) -> Any:
    if not isinstance(text, str):
        return text
    values = []
    for word in (word.strip() for word in text.split(",")):
        try:
            values.append(read(word))
        except ValueError:
            flag = f"--{str(info.field_name).replace('_', '-')}"
            raise InputError(f"{flag} {text}: {word!r} is not a {fix}") from None
    return tuple(values)


Numbers = Annotated[tuple[float, ...], BeforeValidator(numbers)]
WholeNumbers = Annotated[tuple[int | None, ...], BeforeValidator(whole_numbers)]


class SweepOptions(Options):
    """Score several settings of sampling; show fidelity against faithfulness as a table, JSON and a chart."""

    run: str = argument("A run directory or a saved pipeline.", metavar="RUN")
    guidance: Numbers | None = option(None, "Values to try, such as 1,1.5,2,3,5.", metavar="A,B", commas=True)
    truncation: Numbers | None = option(None, "For a GAN: values to try.", metavar="A,B", commas=True)
    temperature: Numbers | None = option(None, "For a prior: values to try.", metavar="A,B", commas=True)
    top_k: WholeNumbers | None = option(None, "For a prior: values to try; all: no limit.", metavar="A,B", commas=True)
    top_p: Numbers | None = option(None, "For a prior: values to try.", metavar="A,B", commas=True)
    steps: WholeNumbers | None = option(
        None, "For a prior with random order: values to try; all: one token per step.", metavar="A,B", commas=True
    )
    data: str | None = option(None, "Captioned images; default: the training data of the run.", metavar="ADDRESS")
    split: str = option("val", "Split of the data, other than heldout and test, which are for reported scores.")
    n: int = option(500, "Images sampled at each setting.", metavar="N", short="-n", ge=2)
    seed: int = option(0, "Seed of the noise, the same at each setting.", ge=0, lt=SEEDS)
    inception: Path | None = option(
        None,
        "State dict of the FID Inception, for `fid` instead of the embedded scorer; auto: the published file.",
        metavar="FILE",
    )
    scorer: Path | None = option(None, "An align run to score with instead of the embedded scorer.", metavar="DIR")
    force: bool = option(False, "Score even where the protocol advises against it.")
    out: Path | None = option(None, "JSON file of all scores; default: in the run.", metavar="FILE")
    make_default: bool = option(False, "Make the best setting the default of this run.")

    def values(self) -> dict[str, tuple[Number, ...]]:
        """Returns the values to try, by setting."""
        values = {name: getattr(self, name) for name in ("guidance", "truncation", *OF_THE_FAMILY)}
        return {name: several for name, several in values.items() if several is not None}

    def scored_with(self, knobs: Mapping[str, Number]) -> ScoreOptions:
        """Returns the options of `t2i eval score` at one setting."""
        names = ("data", "split", "n", "seed", "inception", "scorer", "force")
        values: dict[str, Any] = {name: getattr(self, name) for name in names} | dict(knobs)
        return ScoreOptions(target=self.run, **values)


class ClassifyOptions(Options):
    """Classify images and captions by logistic regression in a shared space: accuracy and macro F1 in four directions."""

    run: str = argument("An align run, embedded, or clip:DIR.", metavar="RUN")
    data: str = option("shapes-2", "Captioned images with labels.", metavar="ADDRESS")
    label: str = option(..., "Name of the label: shape, colour, class, annotation, label, ...", metavar="NAME")
    split: Names = option(("val", "heldout"), "Splits to score on.", metavar="A,B", commas=True)
    train_n: int | None = option(5000, "Images of split train to learn from.", metavar="N", ge=2)
    n: int | None = option(1000, "Images of each split to score on.", metavar="N", short="-n", ge=2)
    c: float = option(1.0, "Inverse strength of the penalty on weights, as scikit-learn's C.", gt=0)
    resolution: int | None = option(
        None, "Pixels per side at which images are read; default: the encoder's.", ge=16, le=1024
    )
    allow_leak: bool = option(False, "Score an align run on its training data; the scores are marked.")
    out: Path | None = option(None, "JSON file of the scores.", metavar="FILE")

    @model_validator(mode="after")
    def _held_out(self) -> Self:
        if "train" in self.split:
            raise InputError("--split train: the classifiers learn from these images; name val, test or heldout")
        return self


def refuse_ignored(values: Mapping[str, object], why: str) -> None:
    """Raises InputError for options that have no effect; `values` has a value for each flag."""
    for flag, value in values.items():
        if value not in (None, False):
            words = "" if value is True else f" {value}"
            raise InputError(f"{flag}{words} has no effect {why}; drop one of the two")
