"""Samples images for prompts and writes PNG files, a grid and a manifest."""

import hashlib
import json
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from t2i import __version__
from t2i.errors import InputError
from t2i.files import open_regular, read_regular
from t2i.images import BrokenImage, ImageArray, decode, grid, save_png
from t2i.sampling.options import SampleOptions
from t2i.sampling.prompts import image_seed

if TYPE_CHECKING:
    from t2i.pipeline import TextToImagePipeline
    from t2i.sampling.reranking import Chooser

GRID_MOST = 100  # images in grid.png
SLUG_MOST = 40  # characters of a prompt in a file name


class Sampled(NamedTuple):
    """One image, its label in the grid, and its entry in the manifest."""

    image: ImageArray
    label: str
    entry: dict[str, Any]


class InitialImage(NamedTuple):
    """An image, parts of which are kept: those outside `mask`, in the first `keep_rows` rows, or not changed by `edit`."""

    init: Path
    mask: Path | None
    keep_rows: int | None
    edit: str | None = None  # the mask of an edit is made later, by the model

    def arguments(self) -> dict[str, Any]:
        """Reads the images; returns arguments for a call of the pipeline."""
        mask = None if self.mask is None else read_image(self.mask)
        return {"init_image": read_image(self.init), "mask_image": mask, "keep_rows": self.keep_rows}

    def described(self) -> dict[str, Any]:
        """Returns the entry of the manifest."""
        paths = {"init": self.init, "mask": self.mask}
        files = {name: {"file": path.name, "sha256": _sha256(path)} for name, path in paths.items() if path is not None}
        return files | {"keep_rows": self.keep_rows} | ({} if self.edit is None else {"edit": self.edit})


@dataclass(frozen=True)
class Job:
    """Prompts and options of one sampling job, after all checks."""

    prompts: list[str]
    options: SampleOptions
    initial: InitialImage | None = None
    scorer: "Chooser | None" = None  # chooses among candidates
    initial_arguments: dict[str, Any] = field(default_factory=dict)  # of `initial`, for a call

    @property
    def each(self) -> int:
        """Returns the number of images, or rows of an interpolation, for each prompt."""
        return self.options.num_images_per_prompt

    @property
    def knobs(self) -> dict[str, Any]:
        """Returns the settings of a call that every family has; None: the pipeline's default."""
        return {"guidance_scale": self.options.guidance, "truncation": self.options.truncation}

    def total(self) -> int:
        """Returns the number of all images."""
        rows = {None: len(self.prompts), "noise": len(self.prompts), "caption": len(self.prompts) - 1}
        return rows[self.options.interpolate] * self.each * (self.options.frames if self.options.interpolate else 1)


def sample_job(pipe: "TextToImagePipeline", job: Job, tick: Callable[[float], None]) -> Iterator[Sampled]:
    """Yields all images in order, a batch at a time; `tick` receives the number of finished images, a fraction included."""
    options = job.options
    if options.interpolate is not None:
        rows = _between_noises if options.interpolate == "noise" else _between_captions
        for number, one in enumerate(rows(pipe, job)):
            tick(number + 1)
            yield one
        return
    prompts_at_once = max(1, options.batch_size // (job.each * options.best_of))
    arguments = {**job.knobs, **options.settings, **job.initial_arguments}
    for start in range(0, len(job.prompts), prompts_at_once):
        prompts = job.prompts[start : start + prompts_at_once]

        def on_step(_: Any, __: int, share: float, ___: Any, start: int = start, size: int = len(prompts)) -> None:
            tick(job.each * (start + share * size))

        output = pipe(
            prompts,
            job.each,
            seed=options.seed,
            batch_size=options.batch_size,
            output_type="uint8",
            callback_on_step_end=on_step,
            best_of=options.best_of,
            scorer=job.scorer,
            **arguments,
        )
        for i, (image, seed) in enumerate(zip(output.images, output.seeds, strict=True)):
            prompt = prompts[i // job.each]
            entry = {"prompt": prompt, "picture": i % job.each, "seed": seed}
            if output.scores is not None:
                scores = output.scores[i]
                entry |= {"candidate": scores.index(max(scores)), "scores": [round(score, 6) for score in scores]}
            yield Sampled(image, prompt, entry)


def _between_noises(pipe: "TextToImagePipeline", job: Job) -> Iterator[Sampled]:
    options = job.options
    for prompt in job.prompts:
        for k in range(job.each):
            seeds = image_seed(options.seed, prompt, k), image_seed(options.seed, prompt, k + 1)
            row = pipe.interpolate_noise(
                prompt, seeds, options.frames, output_type="uint8", **job.knobs, **options.settings
            ).images
            for i, image in enumerate(row):
                weight = i / (options.frames - 1)
                label = f"{prompt}: noise {k} to {k + 1}" if i == 0 else f"{weight:.2f}"
                yield Sampled(image, label, {"prompt": prompt, "seeds": list(seeds), "weight": weight})


def _between_captions(pipe: "TextToImagePipeline", job: Job) -> Iterator[Sampled]:
    options = job.options
    for a, b in pairwise(job.prompts):
        for k in range(job.each):
            seed = image_seed(options.seed, a, k)
            row = pipe.interpolate_captions(
                a, b, options.frames, seed, output_type="uint8", **job.knobs, **options.settings
            ).images
            for i, image in enumerate(row):
                weight = i / (options.frames - 1)
                label = {0: a, options.frames - 1: b}.get(i, f"{weight:.2f}")
                yield Sampled(image, label, {"prompt": a, "to": b, "seed": seed, "weight": weight})


@contextmanager
def free_folder(parent: Path, name: str) -> Iterator[Path]:
    """Creates and yields the first free folder among NAME, NAME-2, ...; no other process gets the same one.

    At the end, removes the folder and its new parents if they are empty.
    """
    new_parents = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    place: Path | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for k in count(1):
            place = parent / (name if k == 1 else f"{name}-{k}")
            with suppress(FileExistsError):
                place.mkdir()
                break
    except OSError as error:
        raise InputError(
            f"cannot write {place or parent}: {error.strerror or error}; name a folder with --out"
        ) from error
    assert place is not None
    try:
        yield place
    finally:
        with suppress(OSError):  # it holds the images
            for folder in (place, *new_parents):
                folder.rmdir()


def write(pipe: "TextToImagePipeline", run: str, job: Job, folder: Path, tick: Callable[[float], None]) -> list[str]:
    """Saves each image when it is sampled, then the grid and the manifest; returns the file names of the images."""
    digits = max(3, len(str(job.total() - 1)))
    entries: list[dict[str, Any]] = []
    shown: list[Sampled] = []
    for number, one in enumerate(sample_job(pipe, job, tick)):
        name = f"{number:0{digits}d}_{slug(one.entry['prompt'])}.png"
        text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in one.entry.items()}
        save_png(one.image, folder / name, text)
        entries.append({"file": name, **one.entry})
        if number < GRID_MOST:
            shown.append(one)
    grid([one.image for one in shown], [one.label for one in shown], grid_columns(job)).save(folder / "grid.png")
    manifest = describe(pipe, run, job, entries)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return [entry["file"] for entry in entries]


def slug(text: str) -> str:
    """Makes a file name from the first words of a prompt: 'a small red circle' -> 'a-small-red-circle'."""
    words = re.sub(r"\W+", "-", text[: 4 * SLUG_MOST].lower()).strip("-_")
    if len(words) <= SLUG_MOST:
        return words or "prompt"
    return words[:SLUG_MOST].rpartition("-")[0] or words[:SLUG_MOST]


def grid_columns(job: Job) -> int | None:
    """Returns the columns of the grid: frames of an interpolation or images of a prompt; None: a square grid."""
    if job.options.interpolate:
        return job.options.frames
    return job.each if 1 < job.each <= 10 else None


def describe(pipe: "TextToImagePipeline", run: str, job: Job, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the content of manifest.json: everything that is needed to make these images again."""
    import torch

    source, knobs = pipe.manifest, job.knobs
    return {
        "run": str(run),
        "checkpoint": {key: source.get(key) for key in ("step", "images_seen", "sha256", "config_hash")},
        "family": pipe.family,
        "text_encoder": {"name": pipe.text_encoder.name, "digest": pipe.text_encoder.digest()},
        "resolution": source["config"]["data"]["resolution"],
        "seed": job.options.seed,
        "num_images_per_prompt": job.each,
        "guidance": pipe.guidance_scale if knobs["guidance_scale"] is None else knobs["guidance_scale"],
        "truncation": pipe.truncation if knobs["truncation"] is None else knobs["truncation"],
        "settings": pipe.sampler.tuned(job.options.settings).settings(),
        "interpolate": job.options.interpolate,
        "given": None if job.initial is None else job.initial.described(),
        "reranking": None if job.scorer is None else described_reranking(job.scorer, job.options.best_of),
        "device": str(pipe.device),
        "versions": {"t2i": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "pictures": list(entries),
    }


def described_reranking(scorer: "Chooser", best_of: int) -> dict[str, Any]:
    """Returns the entry of the manifest with the number of candidates and the scorer."""
    from t2i.sampling.reranking import name_of

    return {"best_of": best_of, "scorer": name_of(scorer), "digest": scorer.digest()}


def read_image(path: Path) -> Image.Image:
    """Reads an image file; raises InputError if it cannot be decoded."""
    try:
        return decode(path)
    except BrokenImage as error:
        raise InputError(f"{path} cannot be read as an image ({error}); name a PNG or JPEG file") from error


def prompt_in(path: Path) -> str | None:
    """Returns the prompt that `t2i sample` wrote into a PNG file, or None."""
    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            image.load()  # text may follow the pixels
            return getattr(image, "text", {}).get("prompt")
    except (OSError, SyntaxError, ValueError):  # no PNG or a damaged one; `read_image` reports that
        return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_regular(path)).hexdigest()
