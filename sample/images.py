"""Samples images for prompts into a new folder: PNG files, manifest.json and a grid with the prompts.

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

Image k of a prompt depends only on (seed, prompt, k), not on the other images; --seed with an image's seed in the manifest makes
that image again. `--interpolate noise` makes a row from image k of each prompt to image k + 1, `--interpolate caption` a row from
each prompt to the next with the noise of image k; -n is then the number of rows for each prompt. `--best-of N` samples N
candidates for each image and keeps the one that a dual encoder scores highest for its prompt; the manifest has all scores. `-i`
loads the model once and samples each line of standard input into a new folder; it prints the paths of the images, or an error
message if a line cannot be sampled.
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
from t2i.sampling.output import GRID_MOST, InitialImage, Job, free_folder, prompt_in, slug, write
from t2i.sampling.prompts import clean_prompt, read_prompts
from t2i.weights import DEFAULT, KNOWN, shipped

MAX_LINE = 1 << 20  # bytes of a line of standard input

if TYPE_CHECKING:
    from t2i.pipeline import TextToImagePipeline
    from t2i.sampling.reranking import Chooser


@contextmanager
def output_folder(out: Path | None, pipe: "TextToImagePipeline", job: Job) -> Iterator[Path]:
    """Yields `out`, or by default the next free folder in the run directory; for a saved pipeline in the working directory.

    With `--interactive`, yields the next free folder inside `out`.
    """
    if out is not None and not job.options.interactive:
        yield out
        return
    parent = out or (pipe.run or Path()) / "samples"
    with free_folder(parent, f"{slug(job.prompts[0])}-seed{job.options.seed}") as place:
        yield place


def warn_of_no_effect(job: Job) -> None:
    """Warns of options that have no effect."""
    options = job.options
    if options.interpolate is None and options.frames != SampleOptions.model_fields["frames"].default:
        warnings.warn(f"--frames {options.frames} has no effect without --interpolate", stacklevel=2)
    if options.truncation == 0 and (job.each > 1 or options.interpolate == "noise"):
        warnings.warn("--truncation 0 removes the noise: all images of a prompt are the same", stacklevel=2)
    repeated = [prompt for prompt, times in Counter(job.prompts).items() if times > 1]
    if repeated and job.options.interpolate != "caption":
        listed = f"{repeated[0][:40]!r}" + (f" and {len(repeated) - 1} more" if len(repeated) > 1 else "")
        warnings.warn(
            f"repeated prompt {listed}: the same prompt and seed make the same image, -n makes more", stacklevel=2
        )


def open_model(run: str, options: SampleOptions) -> tuple["TextToImagePipeline", "Chooser | None"]:
    """Opens the model, and with `--best-of` the scorer of candidates, on a GPU if there is one."""
    import torch

    from t2i.pipeline import TextToImagePipeline
    from t2i.sampling.reranking import open_chooser

    if run in shipped():
        known = KNOWN.get(run, "rendered shapes")
        print(f"sampling from {run}, a model that ships with t2i and knows {known}", file=sys.stderr)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scorer = open_chooser(options.scorer, device) if options.best_of > 1 else None
    # a name that was typed as a run may also be a folder, which from_pretrained warns of
    pipe = TextToImagePipeline.from_pretrained(run if run in options.words else shipped()[run], device)
    if scorer is not None:
        warn_of_scorer(pipe, scorer, options.scorer)
    if pipe.chosen:
        print(f"weights: {pipe.chosen}", file=sys.stderr)
    return pipe, scorer


def warn_of_scorer(pipe: "TextToImagePipeline", scorer: "Chooser", address: str | None) -> None:
    """Warns if the scorer took part in training, or knows other data than the run."""
    from t2i.sampling.trained_with import trained_with

    clip = Path(address.removeprefix("clip:")) if address and address.startswith("clip:") else None
    if role := trained_with(pipe.text_encoder, pipe.manifest, clip).get(scorer.digest()):
        warnings.warn(f"the scorer was this run's {role} in training, so its choice says little", stacklevel=2)
    data = str(pipe.manifest["config"]["data"]["address"])
    if address is None and not data.startswith("shapes-"):
        warnings.warn(
            f"the embedded scorer knows rendered shapes, but this run was trained on {data}; name another with --scorer",
            stacklevel=2,
        )


def split_words(words: Sequence[str], model: str | None, interactive: bool = False) -> tuple[str, list[str]]:
    """Returns (run or shipped model, prompts): the first word is the run unless `model` is set or it reads as a prompt.

    Raises:
        InputError: there is no such model, or a single word may be either a run or a prompt.
    """
    *others, last = shipped()
    names = f"{', '.join(others)} or {last}"
    if model is not None:
        if model not in shipped():
            raise InputError(f"--model {model} does not ship with t2i; name {names}, or a run without --model")
        return model, list(words)
    if not words or _reads_as_prompt(words[0]):
        return DEFAULT, list(words)
    if len(words) == 1 and not interactive and not os.path.exists(words[0]) and words[0] not in shipped():
        raise InputError(
            f"{words[0]!r} is not a run; if it is a prompt, choose a model with --model {names}; if it is a "
            f'run, add a prompt, as in t2i sample RUN "a small red circle"'
        )
    return words[0], list(words[1:])


def _reads_as_prompt(word: str) -> bool:
    """Returns True for several words that are not a path and do not name a file in an existing folder."""
    # not Path.exists, which raises for prompts that are longer than a file name can be
    is_path = os.path.exists(word) or "/" in word and os.path.isdir(os.path.dirname(word))
    return len(word.split()) > 1 and not is_path


def sample_lines(lines: BinaryIO, pipe: "TextToImagePipeline", run: str, job: Job) -> None:
    """Samples each line when it arrives and prints the paths of its images, or an error message.

    Args:
        job: options; it has no prompts.
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
    """Writes the folder of one prompt; returns the paths of its images."""
    job = replace(job, prompts=[prompt])
    with shown_progress(" images") as tick:
        pipe.warn_of_unknown_words(job.prompts)
        with output_folder(job.options.out, pipe, job) as place, new_folder(place) as folder:
            files = write(pipe, run, job, folder, lambda done: tick("sampling", done, job.total()))
    return [place / name for name in files]


def read_all_prompts(words: Sequence[str], options: SampleOptions) -> list[str]:
    """Returns the cleaned prompts of the command line and the file; none with `--interactive`.

    Raises:
        InputError: there are no prompts or too few, or there are some with `--interactive`.
    """
    prompts = [clean_prompt(prompt) for prompt in words]
    if options.interactive:
        if prompts:
            raise InputError(f"--interactive reads prompts from standard input; drop it or {prompts[0][:40]!r}")
        return []
    prompts += read_prompts(options.prompts_file) if options.prompts_file else []
    if not prompts:
        raise InputError('no prompt; add one in quotes, as in t2i sample RUN "a small red circle", or --prompts FILE')
    if options.interpolate == "caption" and len(prompts) < 2:
        raise InputError("--interpolate caption needs two prompts or more, got one; add another")
    return prompts


def edited_prompt(words: Sequence[str], edit: str, init: Path) -> tuple[str, str]:
    """Returns the prompt of an image before and after the edit; by default the prompt that `t2i sample` wrote into it.

    Raises:
        InputError: there is no prompt or more than one, or the edit does not fit the prompt.
    """
    prompts = list(words) or [prompt for prompt in [prompt_in(init)] if prompt is not None]
    if len(prompts) > 1:
        raise InputError(f"--edit: {init} has one prompt, got {len(prompts)}; name one")
    if not prompts:
        raise InputError(f"--edit: {init} holds no prompt; describe the image in quotes")
    return edited(clean_prompt(prompts[0]), edit)


def main(options: SampleOptions) -> None:
    # Prompts, the output folder and the image to keep parts of: everything that can be checked without torch
    run, words = split_words(options.words, options.model, options.interactive or options.edit is not None)
    before = ""
    if options.edit is not None and options.init is not None:
        before, after = edited_prompt(words, options.edit, options.init)
        words = [after]
    prompts = read_all_prompts(words, options)
    if options.out is not None and not options.interactive:
        refuse_used(options.out)
    initial = options.init and InitialImage(options.init, options.mask, options.keep_rows, options.edit)
    arguments = initial.arguments() if initial else {}
    job = Job(prompts, options, initial, initial_arguments=arguments)

    with shown_progress(" images") as tick:
        warn_of_no_effect(job)
        pipe, scorer = open_model(run, options)
        job = replace(job, scorer=scorer)

        # The cells of the words that an edit replaces
        if options.edit is not None:
            from t2i.explain.editing import mask_of_edit

            arguments["mask_image"] = mask_of_edit(pipe, arguments["init_image"], before, prompts[0])

        # Images, grid and manifest of all prompts
        if not options.interactive:
            pipe.warn_of_unknown_words(prompts)
            with output_folder(options.out, pipe, job) as place, new_folder(place) as folder:
                write(pipe, run, job, folder, lambda done: tick("sampling", done, job.total()))

    # Prompts from standard input, one at a time
    if options.interactive:
        print("ready: one prompt per line, the end of input ends the session", file=sys.stderr, flush=True)
        sample_lines(sys.stdin.buffer, pipe, run, job)
        return
    part = f" (grid.png shows the first {GRID_MOST})" if job.total() > GRID_MOST else ""
    print(f"wrote {counted(job.total(), 'image')}, grid.png and manifest.json to {place}{part}")


if __name__ == "__main__":  # python -m t2i.sample.images
    run_program("sample")
