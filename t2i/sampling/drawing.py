"""Samples images for prompts and writes them: PNG files, grid and manifest."""

import hashlib
import json
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from PIL import Image

from t2i import __version__
from t2i.errors import InputError
from t2i.images import BrokenImage, ImageArray, decode, grid, save_png

if TYPE_CHECKING:
    from t2i.extractors import ImageTextExtractor
    from t2i.pipeline import TextToImagePipeline


GRID_MOST = 100  # pictures in grid.png


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
            output_type="uint8",
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
    from t2i.sampling.prompts import image_seed

    for prompt in job.prompts:
        for k in range(job.each):
            seeds = image_seed(job.seed, prompt, k), image_seed(job.seed, prompt, k + 1)
            row = pipe.interpolate_noise(
                prompt, seeds, job.frames, output_type="uint8", **job.knobs, **job.settings
            ).images
            for i, image in enumerate(row):
                weight = i / (job.frames - 1)
                label = f"{prompt}: noise {k} to {k + 1}" if i == 0 else f"{weight:.2f}"
                yield Drawn(image, label, {"prompt": prompt, "seeds": list(seeds), "weight": weight})


def _between_captions(pipe: "TextToImagePipeline", job: Job) -> Iterator[Drawn]:
    from t2i.sampling.prompts import image_seed

    for a, b in pairwise(job.prompts):
        for k in range(job.each):
            seed = image_seed(job.seed, a, k)
            row = pipe.interpolate_captions(
                a, b, job.frames, seed, output_type="uint8", **job.knobs, **job.settings
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
    return {"best_of": best_of, "scorer": scorer.clip_name, "digest": scorer.digest()}


def read_picture(path: Path) -> Image.Image:
    try:
        return decode(path)
    except BrokenImage as error:
        raise InputError(f"{path} is no picture that can be read ({error}); name a PNG or JPEG file") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
