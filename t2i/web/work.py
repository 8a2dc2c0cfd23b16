"""Jobs of the page, without Gradio: they check values from a browser, and return images or raise an error of one line."""

import json
import shlex
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from t2i.config.options import SEEDS, details, flag_of
from t2i.errors import InputError
from t2i.explain.maps import maps_of
from t2i.explain.page import overlay
from t2i.explain.words import words_of
from t2i.images import ImageArray, save_png
from t2i.sampling.options import SampleOptions, Sampling
from t2i.sampling.output import Job, Sampled, describe, sample_job, slug
from t2i.sampling.prompts import clean_prompt, warn_of_unknown_words
from t2i.web.models import Card, Models, WarmModel

MOST_IMAGES, MOST_FRAMES, MOST_WORDS = 16, 16, 20
MOST_DIGITS = 40  # of a whole number; int() refuses thousands
MOST_FILES = 2_000  # images on the disk; the oldest are deleted first
KNOBS = tuple(name for name in Sampling.model_fields if name != "best_of")
WHOLE = ("top_k", "steps")  # text fields; empty: no limit
OnProgress = Callable[[float], None]  # receives the share that is done


class JobResult(NamedTuple):
    """The result of a job."""

    images: list[tuple[str, str]]  # file, label
    command: str  # makes the same images
    warnings: list[str]


@dataclass
class Stop:
    """A request to stop, which the running job checks at each step."""

    requested: bool = False

    def check(self, share: float, on_progress: OnProgress) -> None:
        """Reports progress; raises InputError if a stop was requested."""
        if self.requested:
            raise InputError("stopped; no images were kept")
        on_progress(share)


class Work:
    """Runs the jobs of the page, one at a time.

    Args:
        folder: a folder for images, which only this object uses.
    """

    def __init__(self, models: Models, folder: Path) -> None:
        self.models, self._folder = models, folder
        self._files: deque[Path] = deque()
        self._numbers = count()
        self._busy = Lock()  # also guards the warning filters, which are global

    def sample(self, settings: Mapping[str, Any], stop: Stop, on_progress: OnProgress) -> JobResult:
        """Samples images of one prompt."""
        return self._sample(settings, {}, stop, on_progress)

    def interpolate(self, settings: Mapping[str, Any], stop: Stop, on_progress: OnProgress) -> JobResult:
        """Samples a row from one prompt to another, or from one noise to the next."""
        frames = _whole("frames", settings.get("frames"), 2, MOST_FRAMES)
        if settings.get("between") not in ("caption", "noise"):
            raise InputError(f"interpolate between caption or noise, got {settings.get('between')!r:.40}")
        more = {"interpolate": settings["between"], "frames": frames, "num_images_per_prompt": 1}
        return self._sample(settings, more, stop, on_progress)

    def inpaint(self, settings: Mapping[str, Any], canvas: Any, stop: Stop, on_progress: OnProgress) -> JobResult:
        """Samples images that keep the part without brush strokes."""
        loaded = self.models.open(settings.get("model"))
        if loaded.card.no_inpainting:
            raise InputError(loaded.card.no_inpainting)
        init, mask = brushed(canvas)
        result = self._sample(settings, {}, stop, on_progress, {"init_image": init, "mask_image": mask})
        return result._replace(command="")  # a command would need files of image and mask

    def compare(self, settings: Mapping[str, Any], stop: Stop, on_progress: OnProgress) -> tuple[JobResult, JobResult]:
        """Samples the same prompt and seed with two models, the second with its default settings."""
        first = self._sample(settings, {}, stop, lambda share: on_progress(share / 2))
        other = {name: settings.get(name) for name in ("prompt", "number", "seed")} | {"model": settings.get("other")}
        return first, self._sample(other, {}, stop, lambda share: on_progress((1 + share) / 2))

    def explain(self, settings: Mapping[str, Any], stop: Stop, on_progress: OnProgress) -> JobResult:
        """Samples the first image with default settings, and maps each word of the prompt to the part that it affects."""
        name, loaded = str(settings.get("model")), self.models.open(settings.get("model"))
        prompt, seed = clean_prompt(_text("prompt", settings.get("prompt"))), _seed(settings.get("seed"))
        words = words_of(prompt)
        if len(words) > MOST_WORDS:
            raise InputError(f"this page explains at most {MOST_WORDS} words, got {len(words)}; use t2i explain")
        with self._busy, _caught_warnings() as caught:
            stop.check(0.0, on_progress)
            maps = maps_of(loaded.pipe, prompt, words, seed)
            shown = [(maps.image_HWC, "the image")]
            for word, word_map in zip(words, maps.words, strict=True):
                shown.append((overlay(maps.image_HWC, word_map), f"{word.text}: {word_map.max():.3g} {maps.unit}"))
            images = [
                (str(self._save(f"{slug(label)}.png", image, {"prompt": prompt})), label) for image, label in shown
            ]
        options = ["--seed", str(seed)] if seed else []
        return JobResult(images, _joined(["t2i", "explain", *options], [name, prompt]), list(dict.fromkeys(caught)))

    def _sample(
        self,
        settings: Mapping[str, Any],
        more: Mapping[str, Any],
        stop: Stop,
        on_progress: OnProgress,
        initial: Mapping[str, Any] | None = None,
    ) -> JobResult:
        name, loaded = settings.get("model"), self.models.open(settings.get("model"))
        prompts = [clean_prompt(_text("prompt", settings.get("prompt")))]
        if more.get("interpolate") == "caption":
            prompts.append(clean_prompt(_text("second prompt", settings.get("second"))))
        options = options_of(settings, loaded.card, more)
        job = Job(prompts, options, initial_arguments=dict(initial or {}))
        with self._busy, _caught_warnings() as caught:
            data = str(loaded.pipe.manifest["config"]["data"]["address"])
            warn_of_unknown_words(loaded.pipe.text_encoder, prompts, data, ())  # for each job, not once
            samples = list(sample_job(loaded.pipe, job, lambda done: stop.check(done / job.total(), on_progress)))
            images = [(str(path), label) for path, label in self._write(str(name), loaded, job, samples)]
        return JobResult(images, command_of(str(name), prompts, options), list(dict.fromkeys(caught)))

    def _write(self, name: str, loaded: WarmModel, job: Job, samples: Sequence[Sampled]) -> Iterator[tuple[Path, str]]:
        """Writes images with prompt, settings and checkpoint in their metadata; yields the paths and labels."""
        shared = {key: value for key, value in describe(loaded.pipe, name, job, []).items() if key != "pictures"}
        for frame, one in enumerate(samples):
            entry = {**shared, **one.entry}
            text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in entry.items()}
            tail = f"seed-{entry['seed']}" if "weight" not in entry else f"frame-{frame}"
            path = self._save(f"{slug(entry['prompt'])}_{tail}.png", one.image, text)
            yield path, f"seed {entry['seed']}" if "weight" not in entry else f"{entry['weight']:.2f}"

    def _save(self, name: str, image_HWC: ImageArray, text: dict[str, str]) -> Path:
        """Saves an image in a new folder; deletes the oldest one beyond MOST_FILES."""
        path = self._folder / str(next(self._numbers)) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(image_HWC, path, text)
        self._files.append(path)
        while len(self._files) > MOST_FILES:
            old = self._files.popleft()
            old.unlink(missing_ok=True)
            old.parent.rmdir()
        return path


@contextmanager
def _caught_warnings() -> Iterator[list[str]]:
    """Yields a list that receives the warnings of the block."""
    caught: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: caught.append(str(message))
        yield caught


def options_of(settings: Mapping[str, Any], card: Card, more: Mapping[str, Any]) -> SampleOptions:
    """Converts values of the page to options of `t2i sample`, without defaults and settings of other families.

    Raises:
        InputError: a value has the wrong type or is out of range.
    """
    values: dict[str, Any] = {
        "num_images_per_prompt": _whole("number of images", settings.get("number"), 1, MOST_IMAGES),
        "seed": _seed(settings.get("seed")),
    }
    for knob, default in card.knobs.items():
        value = _number(settings.get(knob)) if knob in WHOLE else settings.get(knob)
        if value is not None and value != default:
            values[knob] = value
    try:
        return SampleOptions(**values | dict(more))
    except InputError as error:
        raise InputError(str(error).removeprefix("--")) from None


def command_of(name: str, prompts: Sequence[str], options: SampleOptions) -> str:
    """Returns the command that makes the same images."""
    defaults = type(options)().model_dump()
    words = ["t2i", "sample"]
    for key, value in options.model_dump().items():
        if value != defaults[key]:
            field = SampleOptions.model_fields[key]
            words += [details(field).get("short") or flag_of(key, field), str(value)]
    return _joined(words, [name, *prompts])


def _joined(command: list[str], arguments: list[str]) -> str:
    """Returns a shell command; `--` marks arguments that look like options."""
    dashed = any(word.startswith("-") for word in arguments)
    return shlex.join([*command, *(["--"] if dashed else []), *arguments])


def brushed(canvas: Any) -> tuple[Image.Image, Image.Image]:
    """Returns (image, mask) of the image editor; the mask is white where any layer was painted.

    Raises:
        InputError: there is no image, or nothing is painted.
    """
    background = canvas.get("background") if isinstance(canvas, Mapping) else None
    if not isinstance(background, Image.Image):
        raise InputError("there is no image to fill in; make one and use it, or upload one")
    layers = [layer for layer in canvas.get("layers") or [] if isinstance(layer, Image.Image)]
    painted = np.zeros((background.height, background.width), bool)
    for layer in layers:
        if layer.size != background.size:
            raise InputError("the brush strokes have another size than the image; clear the canvas and paint again")
        painted |= np.asarray(layer.convert("RGBA"))[:, :, 3] > 0
    if not painted.any():
        raise InputError("nothing is painted; paint over the part to resample")
    white = Image.new("RGBA", background.size, "white")
    return Image.alpha_composite(white, background.convert("RGBA")).convert("RGB"), Image.fromarray(painted)


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"the {what} is empty; describe an image, as in 'a small red circle'")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"the {what} {value!r:.40} holds half a character (a lone surrogate); type it again")
    return value


def _whole(what: str, value: Any, least: int, most: int) -> int:
    whole = _integral(value)
    if isinstance(whole, bool) or not isinstance(whole, int) or not least <= whole <= most:
        raise InputError(f"the {what} must be a whole number from {least} to {most}, got {value!r:.40}")
    return whole


def _integral(value: Any) -> Any:
    """Converts 4.0, which some browsers send for 4, to an int."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: Any) -> Any:
    """Converts the digits of a text field to an int and an empty field to None; returns other values unchanged."""
    text = value.strip() if isinstance(value, str) else value
    if text == "":
        return None
    digits = isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS
    return int(text) if digits else _integral(text)


def _seed(value: Any) -> int:
    """Converts a seed from text, since seeds of images have more digits than a number of a browser."""
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and int(text) < SEEDS):
        raise InputError(f"a seed must be a whole number from 0 to 2**63 - 1, got {value!r:.40}")
    return int(text)
