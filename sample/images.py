"""Draws pictures for prompts: PNG files, manifest.json and a grid with the prompts in a new folder.

    t2i sample "a small red star left of a large green ring"
    t2i sample --model cgan "a small red star left of a large green ring" -n 4
    t2i sample runs/shapes "a small red circle above a large blue square" -n 4 --seed 0
    t2i sample runs/shapes --prompts PartiPrompts.tsv --truncation 0.7
    t2i sample runs/shapes "a red circle" "a blue star" --interpolate caption --frames 8
    t2i sample runs/shapes "a red circle" --interpolate noise -n 3
    t2i sample runs/prior "a red circle" --guidance 2 --temperature 0.7 --top-k 100 --steps 10 --best-of 8
    t2i sample runs/prior "a red circle" --init picture.png --mask mask.png
    t2i sample runs/prior "a red circle" --init picture.png --keep-rows 4

Picture k of a prompt follows from (seed, prompt, k), whatever is drawn beside it. `--interpolate noise` draws a row
from picture k of each prompt to picture k + 1; `--interpolate caption` a row from each prompt to the next one, with the
noise of picture k of the first; -n is then the number of rows of each. `--best-of N` draws N candidates for each picture
and keeps the one that a dual encoder finds closest to its prompt; the manifest has the scores of all.
"""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.console import shown_progress
from t2i.errors import InputError
from t2i.files import new_folder, refuse_used
from t2i.sampling.drawing import GRID_MOST, Given, Interpolate, Job, slug, write
from t2i.sampling.prompts import clean_prompt, read_prompts
from t2i.weights import DEFAULT, shipped

if TYPE_CHECKING:
    from t2i.extractors import ImageTextExtractor
    from t2i.pipeline import TextToImagePipeline


DEFAULT_FRAMES = 8


def output_folder(out: Path | None, pipe: "TextToImagePipeline", job: Job) -> Path:
    """`out`, or the next free name: in the run, beside what training left there; of a saved pipeline, here."""
    if out is not None:
        return out
    parent = (pipe.run or Path()) / "samples"
    name = f"{slug(job.prompts[0])}-seed{job.seed}"
    tried = (parent / (name if k == 1 else f"{name}-{k}") for k in range(1, sys.maxsize))
    return next(path for path in tried if not path.exists())


def warn_of_no_effect(job: Job) -> None:
    """Says which options change nothing."""
    if job.interpolate is None and job.frames != DEFAULT_FRAMES:
        warnings.warn(f"--frames {job.frames} has no effect without --interpolate", stacklevel=2)
    if job.knobs["truncation"] == 0 and (job.each > 1 or job.interpolate == "noise"):
        warnings.warn("--truncation 0 takes the noise away: all pictures of a prompt are the same", stacklevel=2)
    twice = [prompt for prompt, times in Counter(job.prompts).items() if times > 1]
    if twice and job.interpolate != "caption":
        what = f"{twice[0][:40]!r}" + (f" and {len(twice) - 1} more" if len(twice) > 1 else "")
        warnings.warn(
            f"given twice: {what}; the same prompt and seed make the same picture, -n makes more", stacklevel=2
        )


def check_options(given: Mapping[str, Any], interpolate: Interpolate | None, best_of: int, scorer: str | None) -> None:
    """Refuses options that do nothing together."""
    if interpolate and (set_ := next((name for name, value in given.items() if value is not None), None)):
        raise InputError(f"{set_} does nothing with --interpolate; drop one of the two")
    if interpolate and best_of > 1:
        raise InputError(f"--best-of {best_of} does nothing with --interpolate; drop one of the two")
    if scorer is not None and best_of == 1:
        raise InputError(f"--scorer {scorer} chooses among candidates, and there is one; ask for more with --best-of")
    if given["--init"] is None and (alone := next((name for name, value in given.items() if value is not None), None)):
        raise InputError(f"{alone} {given[alone]} needs the picture that it is of; name that with --init")
    if given["--init"] is not None and (given["--mask"] is None) == (given["--keep-rows"] is None):
        raise InputError("--init keeps parts of a picture: say which with either --mask FILE or --keep-rows N")


def warn_of_scorer(pipe: "TextToImagePipeline", scorer: "ImageTextExtractor", address: str | None) -> None:
    """Says where the choice of an encoder is worth less than it seems."""
    from t2i.pipeline import trained_with

    clip = Path(address.removeprefix("clip:")) if address and address.startswith("clip:") else None
    if role := trained_with(pipe, clip).get(scorer.digest()):
        warnings.warn(
            f"the encoder that chooses was this run's {role}: it sees what the run already learned from it",
            stacklevel=2,
        )
    data = str(pipe.manifest["config"]["data"]["address"])
    if address is None and not data.startswith("shapes-"):
        warnings.warn(
            f"the embedded encoder that chooses knows drawn shapes, and this run learned {data}; name another with --scorer",
            stacklevel=2,
        )


def split_words(words: Sequence[str], model: str | None) -> tuple[str, list[str]]:
    """(run or shipped model, prompts): the first word is the run unless a model is named or it reads as a prompt.

    Raises:
        InputError: no such model, or a single word that may be either.
    """
    names = " or ".join(shipped())
    if model is not None:
        if model not in shipped():
            raise InputError(f"--model {model} does not ship with t2i; give {names}, or a run without --model")
        return model, list(words)
    if not words or _reads_as_prompt(words[0]):
        return DEFAULT, list(words)
    if len(words) == 1 and not os.path.exists(words[0]) and words[0] not in shipped():
        raise InputError(
            f"{words[0]!r} is no run; if it is a prompt, say which model is to draw it: --model {names}; if it is a "
            f'run, give a prompt too, as in t2i sample RUN "a small red circle"'
        )
    return words[0], list(words[1:])


def _reads_as_prompt(word: str) -> bool:
    """Several words that are no path; one in a folder that is there was meant as a path."""
    # os.path: a prompt may be longer than a file's name may be, where Path.exists raises
    there = os.path.exists(word) or "/" in word and os.path.isdir(os.path.dirname(word))
    return len(word.split()) > 1 and not there


def main(
    words: list[str],
    model: str | None,
    num_images_per_prompt: int,
    seed: int,
    prompts_file: Path | None,
    guidance: float | None,
    truncation: float | None,
    batch_size: int,
    out: Path | None,
    interpolate: Interpolate | None,
    frames: int,
    settings: dict[str, Any],
    init: Path | None,
    mask: Path | None,
    keep_rows: int | None,
    best_of: int,
    scorer: str | None,
) -> None:
    run, prompts = split_words(words, model)
    wanted = [clean_prompt(prompt) for prompt in prompts] + (read_prompts(prompts_file) if prompts_file else [])
    if not wanted:
        raise InputError('no prompt; give one in quotes, as in t2i sample RUN "a small red circle", or --prompts FILE')
    if interpolate == "caption" and len(wanted) < 2:
        raise InputError("--interpolate caption needs two prompts or more, got one; add another")
    check_options({"--init": init, "--mask": mask, "--keep-rows": keep_rows}, interpolate, best_of, scorer)
    if out is not None:
        refuse_used(out)
    if run in shipped():
        print(f"drawing with {run}, a model that ships with t2i and knows drawn shapes", file=sys.stderr)
    given = None if init is None else Given(init, mask, keep_rows)
    kept = given.arguments() if given else {}

    import torch  # slow to import: the mistakes above are told first

    from t2i.extractors import open_image_text
    from t2i.pipeline import TextToImagePipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    knobs = {"guidance_scale": guidance, "truncation": truncation}
    settings = {name: value for name, value in settings.items() if value is not None}
    with shown_progress(" pictures") as tick:
        chooser = open_image_text(scorer, device) if best_of > 1 else None
        job = Job(
            wanted, num_images_per_prompt, seed, batch_size, knobs, settings, interpolate, frames,
            given, best_of, chooser, kept,
        )  # fmt: skip
        warn_of_no_effect(job)
        pipe = TextToImagePipeline.from_pretrained(run, device)
        if chooser is not None:
            warn_of_scorer(pipe, chooser, scorer)
        if pipe.chosen:
            print(f"weights: {pipe.chosen}", file=sys.stderr)
        place = output_folder(out, pipe, job)
        with new_folder(place) as folder:
            write(pipe, run, job, folder, lambda done: tick("drawing", done, job.total()))
    part = f" (grid.png shows the first {GRID_MOST})" if job.total() > GRID_MOST else ""
    print(f"wrote {job.total():,} pictures, grid.png and manifest.json to {place}{part}")
