"""Options of `t2i sample`, and settings of sampling that several programs share. Imports no torch."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from t2i.config.options import SEEDS, Options, argument, option
from t2i.errors import InputError

Interpolate = Literal["noise", "caption"]
OF_THE_FAMILY = ("temperature", "top_k", "top_p", "steps")  # settings of some samplers; all families have the others


class Sampling(Options):
    """Settings of sampling; None: the run's default."""

    panel: ClassVar[str] = "Sampling (default: the run's own settings)"

    guidance: float | None = option(None, "Guidance scale.")
    truncation: float | None = option(None, "Below 1: less varied and more typical images.")
    temperature: float | None = option(None, "For a prior: below 1, likelier codes are preferred.")
    top_k: int | None = option(None, "For a prior: sample from the k likeliest codes.")
    top_p: float | None = option(None, "For a prior: sample from the likeliest codes of this total probability.")
    steps: int | None = option(None, "For a prior with random order: parallel decoding steps for each image.")
    best_of: int = option(1, "Sample N candidates for each image and keep the best.", metavar="N", ge=1)

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the settings of the run's family that are set."""
        values = {name: getattr(self, name) for name in OF_THE_FAMILY}
        return {name: value for name, value in values.items() if value is not None}


class SampleOptions(Sampling):
    """Sample images for prompts: PNG files, a manifest and a grid."""

    words: tuple[str, ...] = argument(
        "A run directory or a saved pipeline, then prompts in quotes. Without RUN: a model that ships with t2i.",
        metavar="[RUN] PROMPTS...",
        default=(),
    )
    model: str | None = option(
        None, "A model that ships with t2i: prior (default), cvae, cgan or emoji.", metavar="NAME"
    )
    num_images_per_prompt: int = option(1, "Images for each prompt.", metavar="N", short="-n", ge=1)
    seed: int = option(0, "Seed of the noise; an image does not depend on the batch.", ge=0, lt=SEEDS)
    prompts_file: Path | None = option(None, "A text file with one prompt per line.", metavar="FILE", flag="--prompts")
    interactive: bool = option(
        False, "Read prompts from standard input, one per line; the model stays loaded.", short="-i"
    )
    batch_size: int = option(64, "Images sampled at once.", ge=1)
    out: Path | None = option(None, "Output folder; default: inside the run.", metavar="DIR")
    interpolate: Interpolate | None = option(None, "Make rows of images between two noises or two prompts.")
    frames: int = option(8, "Images in a row of an interpolation.", ge=2)
    compile: bool = option(False, "For a prior on a GPU: use CUDA graphs.")
    init: Path | None = option(None, "For a prior: an image to keep parts of.", metavar="FILE")
    mask: Path | None = option(
        None, "With --init: a mask of the same size; white pixels are resampled.", metavar="FILE"
    )
    keep_rows: int | None = option(None, "With --init: keep N rows of tokens at the top.", metavar="N")
    edit: str | None = option(
        None, "With --init: replace words of its prompt and resample only their part.", metavar="'OLD -> NEW'"
    )
    scorer: str | None = option(
        None,
        "With --best-of: an align run, a reader or clip:DIR as scorer, instead of the embedded one.",
        metavar="DIR",
    )

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | ({"compile": True} if self.compile else {})

    @model_validator(mode="after")
    def _refuse_what_has_no_effect(self) -> Self:
        parts = {"--init": self.init, "--mask": self.mask, "--keep-rows": self.keep_rows, "--edit": self.edit}
        first = next((name for name, value in parts.items() if value is not None), None)
        if self.interpolate and first:
            raise InputError(f"{first} has no effect with --interpolate; drop one of the two")
        if self.interpolate and self.best_of > 1:
            raise InputError(f"--best-of {self.best_of} has no effect with --interpolate; drop one of the two")
        if self.scorer is not None and self.best_of == 1:
            raise InputError(
                f"--scorer {self.scorer} chooses among candidates, and there is only one; set --best-of to 2 or more"
            )
        if self.init is None and first:
            raise InputError(f"{first} {parts[first]} needs an image; name it with --init")
        if self.init is not None and sum(part is not None for part in (self.mask, self.keep_rows, self.edit)) != 1:
            raise InputError(
                "--init keeps parts of an image: choose them with one of --mask FILE, --keep-rows N and --edit 'OLD -> NEW'"
            )
        if self.edit is not None and (self.interactive or self.prompts_file is not None):
            other = "--interactive" if self.interactive else f"--prompts {self.prompts_file}"
            raise InputError(f"--edit {self.edit!r} changes the prompt of one image; drop it or {other}")
        if self.interactive and (self.prompts_file is not None or self.interpolate == "caption"):
            other = "--interpolate caption" if self.prompts_file is None else f"--prompts {self.prompts_file}"
            raise InputError(f"--interactive takes one prompt at a time from standard input; drop it or {other}")
        return self
