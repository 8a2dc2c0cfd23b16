"""What the buttons of the page do, without the page: from values that a stranger sent to images, or to one line of refusal."""

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

from t2i.config.options import details, flag_of
from t2i.errors import InputError
from t2i.explain.maps import maps_of
from t2i.explain.page import overlay
from t2i.explain.words import words_of
from t2i.images import ImageArray, save_png
from t2i.sampling.options import SampleOptions, Sampling
from t2i.sampling.output import Job, describe, sample_job, slug
from t2i.sampling.prompts import clean_prompt, warn_of_unknown_words
from t2i.web.models import Card, Models, WarmModel

MOST_IMAGES, MOST_FRAMES, MOST_WORDS = 16, 16, 20
MOST_FILES = 2_000  # images that stay on the disk; the oldest go first
KNOBS = tuple(name for name in Sampling.model_fields if name != "best_of")
WHOLE = ("top_k", "steps")  # empty: none
Hear = Callable[[float], None]  # is given the share that is done


class Made(NamedTuple):
    """Images as files, each with a label; the command that makes them again, and what there is to say."""

    images: list[tuple[str, str]]
    command: str
    said: list[str]


@dataclass
class Stop:
    """A wish to stop, which the work in progress reads at each of its steps."""

    wanted: bool = False

    def heard(self, share: float, hear: Hear) -> None:
        if self.wanted:
            raise InputError("stopped; nothing of it is kept")
        hear(share)


class Work:
    """Makes images for the page, one job of a model at a time.

    Args:
        folder: where images are written; it belongs to this object.
    """

    def __init__(self, models: Models, folder: Path) -> None:
        self.models, self._folder = models, folder
        self._files: deque[Path] = deque()
        self._numbers = count()
        self._busy = Lock()  # also guards `warnings`, whose filters are of the whole process

    def sample(self, given: Mapping[str, Any], stop: Stop, hear: Hear) -> Made:
        """Images of one prompt."""
        return self._make(given, {}, stop, hear)

    def interpolate(self, given: Mapping[str, Any], stop: Stop, hear: Hear) -> Made:
        """A row from one prompt to another, or from one noise to the next."""
        frames = _whole("frames", given.get("frames"), 2, MOST_FRAMES)
        if given.get("between") not in ("caption", "noise"):
            raise InputError(f"interpolate between caption or noise, got {given.get('between')!r:.40}")
        more = {"interpolate": given["between"], "frames": frames, "num_images_per_prompt": 1}
        return self._make(given, more, stop, hear)

    def inpaint(self, given: Mapping[str, Any], canvas: Any, stop: Stop, hear: Hear) -> Made:
        """Images that keep what the brush did not touch."""
        loaded = self.models.open(given.get("model"))
        if loaded.card.no_inpainting:
            raise InputError(loaded.card.no_inpainting)
        init, mask = brushed(canvas)
        made = self._make(given, {}, stop, hear, {"init_image": init, "mask_image": mask})
        return made._replace(command="")  # it would need the image and the mask as files

    def compare(self, given: Mapping[str, Any], stop: Stop, hear: Hear) -> tuple[Made, Made]:
        """The same prompt and seed by two models, the second with its own settings."""
        first = self._make(given, {}, stop, lambda share: hear(share / 2))
        other = {name: given.get(name) for name in ("prompt", "number", "seed")} | {"model": given.get("other")}
        return first, self._make(other, {}, stop, lambda share: hear((1 + share) / 2))

    def explain(self, given: Mapping[str, Any], stop: Stop, hear: Hear) -> Made:
        """The first image, and for each word of the prompt where in it that word matters; with the model's own settings."""
        name, loaded = str(given.get("model")), self.models.open(given.get("model"))
        prompt, seed = clean_prompt(_text("prompt", given.get("prompt"))), _seed(given.get("seed"))
        words = words_of(prompt)
        if len(words) > MOST_WORDS:
            raise InputError(f"this page explains at most {MOST_WORDS} words, got {len(words)}; type t2i explain")
        with self._busy, _said() as said:
            stop.heard(0.0, hear)
            maps = maps_of(loaded.pipe, prompt, words, seed)
            shown = [(maps.image_HWC, "the image")]
            for word, found in zip(words, maps.words, strict=True):
                shown.append((overlay(maps.image_HWC, found), f"{word.text}: {found.max():.3g} {maps.unit}"))
            images = [
                (str(self._save(f"{slug(label)}.png", image, {"prompt": prompt})), label) for image, label in shown
            ]
        options = ["--seed", str(seed)] if seed else []
        return Made(images, _joined(["t2i", "explain", *options], [name, prompt]), list(dict.fromkeys(said)))

    def _make(
        self,
        given: Mapping[str, Any],
        more: Mapping[str, Any],
        stop: Stop,
        hear: Hear,
        kept: Mapping[str, Any] | None = None,
    ) -> Made:
        name, loaded = given.get("model"), self.models.open(given.get("model"))
        prompts = [clean_prompt(_text("prompt", given.get("prompt")))]
        if more.get("interpolate") == "caption":
            prompts.append(clean_prompt(_text("second prompt", given.get("second"))))
        options = options_of(given, loaded.card, more)
        job = Job(prompts, options, initial_arguments=dict(kept or {}))
        with self._busy, _said() as said:
            data = str(loaded.pipe.manifest["config"]["data"]["address"])
            warn_of_unknown_words(loaded.pipe.text_encoder, prompts, data, ())  # every time, and not once for a process
            made = list(sample_job(loaded.pipe, job, lambda done: stop.heard(done / job.total(), hear)))
            images = [(str(path), label) for path, label in self._written(str(name), loaded, job, made)]
        return Made(images, command_of(str(name), prompts, options), list(dict.fromkeys(said)))

    def _written(self, name: str, loaded: WarmModel, job: Job, made: Sequence[Any]) -> Iterator[tuple[Path, str]]:
        """Files with all that made them in their metadata."""
        shared = {key: value for key, value in describe(loaded.pipe, name, job, []).items() if key != "pictures"}
        for frame, one in enumerate(made):
            entry = {**shared, **one.entry}
            text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in entry.items()}
            tail = f"seed-{entry['seed']}" if "weight" not in entry else f"frame-{frame}"
            path = self._save(f"{slug(entry['prompt'])}_{tail}.png", one.image, text)
            yield path, f"seed {entry['seed']}" if "weight" not in entry else f"{entry['weight']:.2f}"

    def _save(self, name: str, image_HWC: ImageArray, text: dict[str, str]) -> Path:
        """A file in a folder of its own; the oldest of too many is deleted."""
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
def _said() -> Iterator[list[str]]:
    """What is warned of inside the block, a line each."""
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: said.append(str(message))
        yield said


def options_of(given: Mapping[str, Any], card: Card, more: Mapping[str, Any]) -> SampleOptions:
    """The values of the page as `t2i sample` takes them; those of another family, and those that change nothing, are left out.

    Raises:
        InputError: one has another type or is out of range.
    """
    values: dict[str, Any] = {
        "num_images_per_prompt": _whole("number of images", given.get("number"), 1, MOST_IMAGES),
        "seed": _seed(given.get("seed")),
    }
    for knob, usual in card.knobs.items():
        value = _number(given.get(knob)) if knob in WHOLE else given.get(knob)
        if value is not None and value != usual:
            values[knob] = value
    try:
        return SampleOptions(**values | dict(more))
    except InputError as error:
        raise InputError(str(error).removeprefix("--")) from None


def command_of(name: str, prompts: Sequence[str], options: SampleOptions) -> str:
    """The command that makes the same images."""
    usual = type(options)().model_dump()
    words = ["t2i", "sample"]
    for key, value in options.model_dump().items():
        if value != usual[key]:
            field = SampleOptions.model_fields[key]
            words += [details(field).get("short") or flag_of(key, field), str(value)]
    return _joined(words, [name, *prompts])


def _joined(command: list[str], arguments: list[str]) -> str:
    """A line for a shell; arguments that look like options stay arguments."""
    dashed = any(word.startswith("-") for word in arguments)
    return shlex.join([*command, *(["--"] if dashed else []), *arguments])


def brushed(canvas: Any) -> tuple[Image.Image, Image.Image]:
    """(image, mask) of what the editor holds: light where any layer was painted on.

    Raises:
        InputError: there is no image, or nothing is painted.
    """
    background = canvas.get("background") if isinstance(canvas, Mapping) else None
    if not isinstance(background, Image.Image):
        raise InputError("there is no image to fill in; make one and take it over, or upload one")
    layers = [layer for layer in canvas.get("layers") or [] if isinstance(layer, Image.Image)]
    painted = np.zeros((background.height, background.width), bool)
    for layer in layers:
        if layer.size != background.size:
            raise InputError("the brush strokes have another size than the image; clear the canvas and paint again")
        painted |= np.asarray(layer.convert("RGBA"))[:, :, 3] > 0
    if not painted.any():
        raise InputError("nothing is painted; brush over what is to be sampled anew")
    white = Image.new("RGBA", background.size, "white")
    return Image.alpha_composite(white, background.convert("RGBA")).convert("RGB"), Image.fromarray(painted)


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"the {what} is empty; say what to sample, as in 'a small red circle'")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"the {what} {value!r:.40} holds half a character (a lone surrogate); type it anew")
    return value


def _whole(what: str, value: Any, least: int, most: int) -> int:
    whole = _integral(value)
    if isinstance(whole, bool) or not isinstance(whole, int) or not least <= whole <= most:
        raise InputError(f"the {what} is a whole number from {least} to {most} here, got {value!r:.40}")
    return whole


def _integral(value: Any) -> Any:
    """4.0, which is how some browsers spell 4, as an int."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: Any) -> Any:
    """Digits of a text field as a number; None where it is empty; anything else as it is."""
    text = value.strip() if isinstance(value, str) else value
    return (
        None
        if text == ""
        else int(text)
        if isinstance(text, str) and text.isascii() and text.isdigit()
        else _integral(text)
    )


def _seed(value: Any) -> int:
    """A seed as text, for those of images have more digits than a number of a browser holds."""
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise InputError(f"a seed is a whole number of at most 19 digits from 0 on, got {value!r:.40}")
    return int(text)
