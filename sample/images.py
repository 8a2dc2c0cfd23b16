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

import hashlib
import json
import os
import platform
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from PIL import Image

from t2i import __version__
from t2i.console import shown_progress
from t2i.errors import InputError
from t2i.folders import new_folder, refuse_used
from t2i.images import BrokenImage, ImageArray, decode, grid, save_png
from t2i.prompts import clean_prompt, read_prompts
from t2i.shipped import DEFAULT, shipped

if TYPE_CHECKING:
    from t2i.metrics import ImageTextExtractor
    from t2i.pipeline import TextToImagePipeline

GRID_MOST = 100  # pictures in grid.png
DEFAULT_FRAMES = 8

Interpolate = Literal["noise", "caption"]


class Drawn(NamedTuple):
    """One picture, what stands under it in the grid, and its entry in the manifest."""

    image: ImageArray
    label: str
    entry: dict[str, Any]


class Given(NamedTuple):
    """A picture of which parts are kept, and which parts those are."""

    init: Path
    mask: Path | None
    keep_rows: int | None

    def arguments(self) -> dict[str, Any]:
        """For a call of the pipeline."""
        mask = None if self.mask is None else read_picture(self.mask)
        return {"init_image": read_picture(self.init), "mask_image": mask, "keep_rows": self.keep_rows}

    def described(self) -> dict[str, Any]:
        paths = {"init": self.init, "mask": self.mask}
        files = {name: {"file": path.name, "sha256": _sha256(path)} for name, path in paths.items() if path is not None}
        return files | {"keep_rows": self.keep_rows}


@dataclass(frozen=True)
class Job:
    """What is to be drawn."""

    prompts: list[str]
    each: int
    seed: int
    batch_size: int
    knobs: dict[str, Any]  # guidance_scale and truncation of a call; None: the pipeline's own
    settings: dict[str, Any]  # of the family
    interpolate: Interpolate | None
    frames: int
    given: Given | None = None
    best_of: int = 1
    scorer: "ImageTextExtractor | None" = None  # that chooses
    kept: dict[str, Any] = field(default_factory=dict)  # `given` for a call

    def total(self) -> int:
        rows = {None: len(self.prompts), "noise": len(self.prompts), "caption": len(self.prompts) - 1}
        return rows[self.interpolate] * self.each * (self.frames if self.interpolate else 1)


def pictures(pipe: "TextToImagePipeline", job: Job, tick: Callable[[float], None]) -> Iterator[Drawn]:
    """All pictures in order, a batch at a time; `tick` hears how many are done, in part too."""
    if job.interpolate is not None:
        rows = _between_noises if job.interpolate == "noise" else _between_captions
        for number, one in enumerate(rows(pipe, job)):
            tick(number + 1)
            yield one
        return
    at_once = max(1, job.batch_size // (job.each * job.best_of))
    words = {**job.knobs, **job.settings, **job.kept, "best_of": job.best_of, "scorer": job.scorer}
    for start in range(0, len(job.prompts), at_once):
        part = job.prompts[start : start + at_once]

        def heard(_: Any, __: int, share: float, ___: Any, start: int = start, size: int = len(part)) -> None:
            tick(job.each * (start + share * size))

        output = pipe(
            part,
            job.each,
            seed=job.seed,
            batch_size=job.batch_size,
            output_type="np",
            callback_on_step_end=heard,
            **words,
        )
        for i, (image, seed) in enumerate(zip(output.images, output.seeds, strict=True)):
            prompt = part[i // job.each]
            entry = {"prompt": prompt, "picture": i % job.each, "seed": seed}
            if output.scores is not None:
                scores = output.scores[i]
                entry |= {"candidate": scores.index(max(scores)), "scores": [round(score, 6) for score in scores]}
            yield Drawn(image, prompt, entry)


def _between_noises(pipe: "TextToImagePipeline", job: Job) -> Iterator[Drawn]:
    from t2i.pipeline import picture_seed

    for prompt in job.prompts:
        for k in range(job.each):
            seeds = picture_seed(job.seed, prompt, k), picture_seed(job.seed, prompt, k + 1)
            row = pipe.interpolate_noise(
                prompt, seeds, job.frames, output_type="np", **job.knobs, **job.settings
            ).images
            for i, image in enumerate(row):
                weight = i / (job.frames - 1)
                label = f"{prompt}: noise {k} to {k + 1}" if i == 0 else f"{weight:.2f}"
                yield Drawn(image, label, {"prompt": prompt, "seeds": list(seeds), "weight": weight})


def _between_captions(pipe: "TextToImagePipeline", job: Job) -> Iterator[Drawn]:
    from t2i.pipeline import picture_seed

    for a, b in pairwise(job.prompts):
        for k in range(job.each):
            seed = picture_seed(job.seed, a, k)
            row = pipe.interpolate_captions(
                a, b, job.frames, seed, output_type="np", **job.knobs, **job.settings
            ).images
            for i, image in enumerate(row):
                weight = i / (job.frames - 1)
                label = {0: a, job.frames - 1: b}.get(i, f"{weight:.2f}")
                yield Drawn(image, label, {"prompt": a, "to": b, "seed": seed, "weight": weight})


def write(pipe: "TextToImagePipeline", run: str, job: Job, folder: Path, tick: Callable[[float], None]) -> None:
    """Saves each picture as it comes, then grid and manifest."""
    digits = max(3, len(str(job.total() - 1)))
    entries: list[dict[str, Any]] = []
    shown: list[Drawn] = []
    for number, one in enumerate(pictures(pipe, job, tick)):
        name = f"{number:0{digits}d}_{slug(one.entry['prompt'])}.png"
        text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in one.entry.items()}
        save_png(one.image, folder / name, text)
        entries.append({"file": name, **one.entry})
        if number < GRID_MOST:
            shown.append(one)
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


def describe(pipe: "TextToImagePipeline", run: str, job: Job, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
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
        "given": None if job.given is None else job.given.described(),
        "reranking": None if job.scorer is None else described_reranking(job.scorer, job.best_of),
        "device": str(pipe.device),
        "versions": {"t2i": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "pictures": list(entries),
    }


def described_reranking(scorer: "ImageTextExtractor", best_of: int) -> dict[str, Any]:
    from t2i.reranking import reranker_name

    return {"best_of": best_of, "scorer": reranker_name(scorer), "digest": scorer.digest()}


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


def read_picture(path: Path) -> Image.Image:
    try:
        return decode(path)
    except BrokenImage as error:
        raise InputError(f"{path} is no picture that can be read ({error}); name a PNG or JPEG file") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    from t2i.scoring import trained_with
    from t2i.scoring_metrics import Options

    clip = Path(address.removeprefix("clip:")) if address and address.startswith("clip:") else None
    if role := trained_with(pipe, Options(clip=clip)).get(scorer.digest()):
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

    from t2i.pipeline import TextToImagePipeline
    from t2i.reranking import open_reranker

    device = "cuda" if torch.cuda.is_available() else "cpu"
    knobs = {"guidance_scale": guidance, "truncation": truncation}
    settings = {name: value for name, value in settings.items() if value is not None}
    with shown_progress(" pictures") as tick:
        chooser = open_reranker(scorer, device) if best_of > 1 else None
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
