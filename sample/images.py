"""Samples images for prompts: PNG files, manifest.json and a grid with the prompts in a new folder.

    t2i sample "a small red star left of a large green ring"
    t2i sample --model cgan "a small red star left of a large green ring" -n 4
    t2i sample runs/shapes "a small red circle above a large blue square" -n 4 --seed 0
    t2i sample runs/shapes --prompts PartiPrompts.tsv --truncation 0.7
    t2i sample runs/shapes "a red circle" "a blue star" --interpolate caption --frames 8
    t2i sample runs/shapes "a red circle" --interpolate noise -n 3
    t2i sample runs/prior "a red circle" --guidance 2 --temperature 0.7 --top-k 100 --steps 10 --best-of 8
    t2i sample runs/prior "a red circle" --init image.png --mask mask.png
    t2i sample runs/prior "a red circle" --init image.png --keep-rows 4
    t2i sample runs/prior --init image.png --edit "red -> blue"
    t2i sample runs/prior -i

Image k of a prompt follows from (seed, prompt, k), whatever is sampled beside it; the seed that the manifest tells of an image
makes that image again. `--interpolate noise` makes a row from image k of each prompt to image k + 1; `--interpolate caption` a
row from each prompt to the next one, with the noise of image k of the first; -n is then the number of rows of each. `--best-of N`
samples N candidates for each image and keeps the one that a dual encoder finds closest to its prompt; the manifest has the
scores of all. `-i` loads the model once and samples each line of standard input as it comes, into a folder of its own; the paths
of the images are printed, and a line that cannot be sampled is an error message and not the end.
"""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from t2i.cli import run_program
from t2i.console import shown_progress
from t2i.errors import InputError
from t2i.explain.words import edited
from t2i.files import new_folder, refuse_used
from t2i.names import counted
from t2i.sampling.options import SampleOptions
from t2i.sampling.output import GRID_MOST, Given, Job, free_folder, prompt_in, slug, write
from t2i.sampling.prompts import clean_prompt, read_prompts
from t2i.weights import DEFAULT, shipped

MAX_LINE = 1 << 20  # bytes of standard input that are read as one prompt

if TYPE_CHECKING:
    from t2i.pipeline import TextToImagePipeline
    from t2i.sampling.reranking import Chooser


@contextmanager
def output_folder(out: Path | None, pipe: "TextToImagePipeline", job: Job) -> Iterator[Path]:
    """Yields `out`, or the next free name: in the run directory, or here for a saved pipeline.

    With `--interactive` each line has a free name inside of `out`.
    """
    if out is not None and not job.options.interactive:
        yield out
        return
    parent = out or (pipe.run or Path()) / "samples"
    with free_folder(parent, f"{slug(job.prompts[0])}-seed{job.options.seed}") as place:
        yield place


def warn_of_no_effect(job: Job) -> None:
    """Warns of options that change nothing."""
    options = job.options
    if options.interpolate is None and options.frames != SampleOptions.model_fields["frames"].default:
        warnings.warn(f"--frames {options.frames} has no effect without --interpolate", stacklevel=2)
    if options.truncation == 0 and (job.each > 1 or options.interpolate == "noise"):
        warnings.warn("--truncation 0 takes the noise away: all images of a prompt are the same", stacklevel=2)
    twice = [prompt for prompt, times in Counter(job.prompts).items() if times > 1]
    if twice and job.options.interpolate != "caption":
        what = f"{twice[0][:40]!r}" + (f" and {len(twice) - 1} more" if len(twice) > 1 else "")
        warnings.warn(f"given twice: {what}; the same prompt and seed make the same image, -n makes more", stacklevel=2)


def warn_of_scorer(pipe: "TextToImagePipeline", scorer: "Chooser", address: str | None) -> None:
    """Warns when the choice by an encoder means little."""
    from t2i.sampling.trained_with import trained_with

    clip = Path(address.removeprefix("clip:")) if address and address.startswith("clip:") else None
    if role := trained_with(pipe.text_encoder, pipe.manifest, clip).get(scorer.digest()):
        warnings.warn(
            f"the encoder that chooses was this run's {role}: it sees what the run already learned from it",
            stacklevel=2,
        )
    data = str(pipe.manifest["config"]["data"]["address"])
    if address is None and not data.startswith("shapes-"):
        warnings.warn(
            f"the embedded encoder that chooses knows rendered shapes, and this run learned {data}; name another with --scorer",
            stacklevel=2,
        )


def split_words(words: Sequence[str], model: str | None, interactive: bool = False) -> tuple[str, list[str]]:
    """(run or shipped model, prompts): the first word is the run unless a model is named or it reads as a prompt.

    Raises:
        InputError: no such model, or a single word that may be either.
    """
    *others, last = shipped()
    names = f"{', '.join(others)} or {last}"
    if model is not None:
        if model not in shipped():
            raise InputError(f"--model {model} does not ship with t2i; give {names}, or a run without --model")
        return model, list(words)
    if not words or _reads_as_prompt(words[0]):
        return DEFAULT, list(words)
    if len(words) == 1 and not interactive and not os.path.exists(words[0]) and words[0] not in shipped():
        raise InputError(
            f"{words[0]!r} is no run; if it is a prompt, say which model is to sample it: --model {names}; if it is a "
            f'run, give a prompt too, as in t2i sample RUN "a small red circle"'
        )
    return words[0], list(words[1:])


def _reads_as_prompt(word: str) -> bool:
    """True for several words that are no path; a name in a folder that exists was meant as a path."""
    # os.path: a prompt may be longer than a file's name may be, where Path.exists raises
    there = os.path.exists(word) or "/" in word and os.path.isdir(os.path.dirname(word))
    return len(word.split()) > 1 and not there


def sample_lines(lines: BinaryIO, pipe: "TextToImagePipeline", run: str, job: Job) -> None:
    """Samples each line as it comes and prints the paths of its images; a mistake in one is reported and the next is read.

    Args:
        job: without prompts.
    """
    while line := lines.readline(MAX_LINE):
        if not (line := line.rstrip(b"\r\n")).strip():
            continue
        try:
            paths = sample_prompt(clean_prompt(line.decode()), pipe, run, job)
        except UnicodeDecodeError as error:
            print(f"error: the line {line[:40]!r} is not UTF-8 (byte {error.start})", file=sys.stderr, flush=True)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            print(*paths, sep="\n", flush=True)


def sample_prompt(prompt: str, pipe: "TextToImagePipeline", run: str, job: Job) -> list[Path]:
    """Writes the folder of one prompt; returns its images."""
    job = replace(job, prompts=[prompt])
    with shown_progress(" images") as tick:
        pipe.warn_of_unknown_words(job.prompts)
        with output_folder(job.options.out, pipe, job) as place, new_folder(place) as folder:
            files = write(pipe, run, job, folder, lambda done: tick("sampling", done, job.total()))
    return [place / name for name in files]


def read_all_prompts(words: Sequence[str], options: SampleOptions) -> list[str]:
    """The prompts that are sampled, cleaned; none with `--interactive`, which reads them later.

    Raises:
        InputError: there are none, too few, or some although they come from standard input.
    """
    wanted = [clean_prompt(prompt) for prompt in words]
    if options.interactive:
        if wanted:
            raise InputError(f"--interactive reads prompts from standard input; drop it or {wanted[0][:40]!r}")
        return []
    wanted += read_prompts(options.prompts_file) if options.prompts_file else []
    if not wanted:
        raise InputError('no prompt; give one in quotes, as in t2i sample RUN "a small red circle", or --prompts FILE')
    if options.interpolate == "caption" and len(wanted) < 2:
        raise InputError("--interpolate caption needs two prompts or more, got one; add another")
    return wanted


def edited_prompt(words: Sequence[str], options: SampleOptions) -> tuple[list[str], str]:
    """([the prompt after the edit], the prompt before it), which `t2i sample` wrote into the image where none is given.

    Raises:
        InputError: there is no prompt, more than one, or the edit does not fit it.
    """
    assert options.edit is not None and options.init is not None
    told = list(words) or [prompt for prompt in [prompt_in(options.init)] if prompt is not None]
    if len(told) != 1:
        why = (
            "holds no prompt; say in quotes what it shows" if not told else f"has one prompt, and {len(told)} are given"
        )
        raise InputError(f"--edit: {options.init} {why}")
    before, after = edited(clean_prompt(told[0]), options.edit)
    return [after], before


def main(options: SampleOptions) -> None:
    run, words = split_words(options.words, options.model, options.interactive or options.edit is not None)
    before = ""
    if options.edit is not None:
        words, before = edited_prompt(words, options)
    wanted = read_all_prompts(words, options)
    if options.out is not None and not options.interactive:
        refuse_used(options.out)
    if run in shipped():
        print(f"sampling from {run}, a model that ships with t2i and knows rendered shapes", file=sys.stderr)
    given = None if options.init is None else Given(options.init, options.mask, options.keep_rows, options.edit)
    kept = given.arguments() if given else {}

    import torch  # slow to import: the mistakes above are told first

    from t2i.pipeline import TextToImagePipeline
    from t2i.sampling.reranking import open_chooser

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with shown_progress(" images") as tick:
        scorer = open_chooser(options.scorer, device) if options.best_of > 1 else None
        job = Job(wanted, options, given, scorer, kept)
        warn_of_no_effect(job)
        # a name that was typed as a run may have meant a folder, and a warning says so
        pipe = TextToImagePipeline.from_pretrained(run if run in options.words else shipped()[run], device)
        if options.edit is not None:
            from t2i.explain.editing import mask_of_edit

            kept["mask_image"] = mask_of_edit(pipe, kept["init_image"], before, wanted[0])
        if scorer is not None:
            warn_of_scorer(pipe, scorer, options.scorer)
        if pipe.chosen:
            print(f"weights: {pipe.chosen}", file=sys.stderr)
        if not options.interactive:
            pipe.warn_of_unknown_words(wanted)
            with output_folder(options.out, pipe, job) as place, new_folder(place) as folder:
                write(pipe, run, job, folder, lambda done: tick("sampling", done, job.total()))
    if options.interactive:
        print("ready: one prompt a line, the end of input ends the session", file=sys.stderr, flush=True)
        sample_lines(sys.stdin.buffer, pipe, run, job)
        return
    part = f" (grid.png shows the first {GRID_MOST})" if job.total() > GRID_MOST else ""
    print(f"wrote {counted(job.total(), 'image')}, grid.png and manifest.json to {place}{part}")


if __name__ == "__main__":  # python -m t2i.sample.images
    run_program("sample")
