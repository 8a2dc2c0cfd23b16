"""Draws pictures for prompts: PNG files, manifest.json and a grid with the prompts in a new folder.

    t2i sample runs/shapes "a small red circle above a large blue square" -n 4 --seed 0
    t2i sample runs/shapes --prompts PartiPrompts.tsv --truncation 0.7
    t2i sample runs/shapes "a red circle" "a blue star" --interpolate caption --steps 8
    t2i sample runs/shapes "a red circle" --interpolate noise -n 3

Picture k of a prompt follows from (seed, prompt, k), whatever is drawn beside it. `--interpolate noise` draws a row
from picture k of each prompt to picture k + 1; `--interpolate caption` a row from each prompt to the next one, with the
noise of picture k of the first; -n is then the number of rows of each.
"""

import json
import platform
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from t2i import __version__
from t2i.errors import InputError
from t2i.folders import new_folder, refuse_used
from t2i.images import ImageArray, grid, save_png
from t2i.prompts import clean_prompt, read_prompts
from t2i.text import TruncationWarning

if TYPE_CHECKING:
    from t2i.pipeline import TextToImagePipeline

GRID_MOST = 100  # pictures in grid.png
LINE_SECONDS = 10.0  # between two lines on a stderr that is no terminal
DEFAULT_FRAMES = 8

Interpolate = Literal["noise", "caption"]


class Drawn(NamedTuple):
    """One picture, what stands under it in the grid, and its entry in the manifest."""

    image: ImageArray
    label: str
    entry: dict[str, Any]


class Job(NamedTuple):
    """What is to be drawn."""

    prompts: list[str]
    each: int
    seed: int
    batch_size: int
    knobs: dict[str, Any]  # guidance_scale and truncation of a call; None: the pipeline's own
    settings: dict[str, Any]  # of the family
    interpolate: Interpolate | None
    frames: int

    def total(self) -> int:
        rows = {None: len(self.prompts), "noise": len(self.prompts), "caption": len(self.prompts) - 1}
        return rows[self.interpolate] * self.each * (self.frames if self.interpolate else 1)


def pictures(pipe: "TextToImagePipeline", job: Job) -> Iterator[Drawn]:
    """All pictures in order, a batch at a time."""
    if job.interpolate == "noise":
        yield from _between_noises(pipe, job)
    elif job.interpolate == "caption":
        yield from _between_captions(pipe, job)
    else:
        at_once = max(1, job.batch_size // job.each)
        for start in range(0, len(job.prompts), at_once):
            part = job.prompts[start : start + at_once]
            output = pipe(
                part, job.each, seed=job.seed, batch_size=job.batch_size, output_type="np", **job.knobs, **job.settings
            )
            for i, (image, seed) in enumerate(zip(output.images, output.seeds, strict=True)):
                prompt = part[i // job.each]
                yield Drawn(image, prompt, {"prompt": prompt, "picture": i % job.each, "seed": seed})


def _between_noises(pipe: "TextToImagePipeline", job: Job) -> Iterator[Drawn]:
    from t2i.pipeline import picture_seed

    for prompt in job.prompts:
        for k in range(job.each):
            seeds = picture_seed(job.seed, prompt, k), picture_seed(job.seed, prompt, k + 1)
            row = pipe.interpolate_noise(prompt, seeds, job.frames, output_type="np", **job.knobs).images
            for i, image in enumerate(row):
                weight = i / (job.frames - 1)
                label = f"{prompt}: noise {k} to {k + 1}" if i == 0 else f"{weight:.2f}"
                yield Drawn(image, label, {"prompt": prompt, "seeds": list(seeds), "weight": weight})


def _between_captions(pipe: "TextToImagePipeline", job: Job) -> Iterator[Drawn]:
    from t2i.pipeline import picture_seed

    for a, b in pairwise(job.prompts):
        for k in range(job.each):
            seed = picture_seed(job.seed, a, k)
            row = pipe.interpolate_captions(a, b, job.frames, seed, output_type="np", **job.knobs).images
            for i, image in enumerate(row):
                weight = i / (job.frames - 1)
                label = {0: a, job.frames - 1: b}.get(i, f"{weight:.2f}")
                yield Drawn(image, label, {"prompt": a, "to": b, "seed": seed, "weight": weight})


def write(pipe: "TextToImagePipeline", run: Path, job: Job, folder: Path, tick: Callable[[int], None]) -> None:
    """Saves each picture as it comes, then grid and manifest."""
    digits = max(3, len(str(job.total() - 1)))
    entries: list[dict[str, Any]] = []
    shown: list[Drawn] = []
    for number, one in enumerate(pictures(pipe, job)):
        name = f"{number:0{digits}d}_{slug(one.entry['prompt'])}.png"
        text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in one.entry.items()}
        save_png(one.image, folder / name, text)
        entries.append({"file": name, **one.entry})
        if number < GRID_MOST:
            shown.append(one)
        tick(number + 1)
    grid([one.image for one in shown], [one.label for one in shown], grid_columns(job)).save(folder / "grid.png")
    manifest = describe(pipe, run, job, entries)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")


def slug(text: str, most: int = 40) -> str:
    """The first words of a prompt as a file name: 'a small red circle' -> 'a-small-red-circle'."""
    words = re.sub(r"\W+", "-", text[: 4 * most].lower()).strip("-_")
    return words[:most].rpartition("-")[0] or words[:most] if len(words) > most else words or "prompt"


def grid_columns(job: Job) -> int | None:
    """A row of the grid is a row of an interpolation, or the pictures of one prompt."""
    if job.interpolate:
        return job.frames
    return job.each if 1 < job.each <= 10 else None


def describe(pipe: "TextToImagePipeline", run: Path, job: Job, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """manifest.json: all that is needed to draw these pictures again."""
    import torch

    source = pipe.manifest
    return {
        "run": str(run),
        "checkpoint": {key: source.get(key) for key in ("step", "images_seen", "sha256", "config_hash")},
        "family": pipe.family,
        "text_encoder": {"name": pipe.text_encoder.name, "digest": pipe.text_encoder.digest()},
        "resolution": source["config"]["data"]["resolution"],
        "seed": job.seed,
        "num_images_per_prompt": job.each,
        "guidance": pipe.guidance_scale if job.knobs["guidance_scale"] is None else job.knobs["guidance_scale"],
        "truncation": pipe.truncation if job.knobs["truncation"] is None else job.knobs["truncation"],
        "settings": pipe.sampler.tuned(job.settings).settings(),
        "interpolate": job.interpolate,
        "device": str(pipe.device),
        "versions": {"t2i": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "pictures": list(entries),
    }


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


@contextmanager
def warnings_as_lines(console: Console) -> Iterator[None]:
    """One line on stderr a warning; those of cut prompts, one a batch, are added up."""
    cut: list[TruncationWarning] = []

    def show(message: Warning | str, *_: Any) -> None:
        if isinstance(message, TruncationWarning):
            cut.append(message)
        else:
            console.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
        if cut:
            show(str(TruncationWarning(sum(one.count for one in cut), cut[0].name, cut[0].limit)))


@contextmanager
def progress(total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else a line now and then."""
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("draw", total=total)
        said = time.monotonic()

        def tick(done: int) -> None:
            nonlocal said
            bar.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - said > LINE_SECONDS:
                said = time.monotonic()
                print(f"{done:,} of {total:,} pictures", file=sys.stderr)

        yield tick


def main(
    run: Path,
    prompts: list[str],
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
) -> None:
    wanted = [clean_prompt(prompt) for prompt in prompts] + (read_prompts(prompts_file) if prompts_file else [])
    if not wanted:
        raise InputError('no prompt; give one in quotes, as in t2i sample RUN "a small red circle", or --prompts FILE')
    if interpolate == "caption" and len(wanted) < 2:
        raise InputError("--interpolate caption needs two prompts or more, got one; add another")
    if out is not None:
        refuse_used(out)
    knobs = {"guidance_scale": guidance, "truncation": truncation}
    settings = {name: value for name, value in settings.items() if value is not None}
    job = Job(wanted, num_images_per_prompt, seed, batch_size, knobs, settings, interpolate, frames)

    import torch  # slow to import: the mistakes above are told first

    from t2i.pipeline import TextToImagePipeline

    console = Console(stderr=True)
    with warnings_as_lines(console):
        warn_of_no_effect(job)
        pipe = TextToImagePipeline.from_pretrained(run, "cuda" if torch.cuda.is_available() else "cpu")
        place = output_folder(out, pipe, job)
        with new_folder(place) as folder, progress(job.total(), console) as tick:
            write(pipe, run, job, folder, tick)
    part = f" (grid.png shows the first {GRID_MOST})" if job.total() > GRID_MOST else ""
    print(f"wrote {job.total():,} pictures, grid.png and manifest.json to {place}{part}")
