"""Opens runs for a report: the newest weights, the journal, the scores and the command of each."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from t2i.data import Split, View
from t2i.errors import InputError
from t2i.families import FAMILIES, family_of, parameters_of
from t2i.families.tokenizers import tokenizer_of
from t2i.files import read_object
from t2i.metrics.score import Score, read_scores
from t2i.training import journal
from t2i.weights import INDEX, find

if TYPE_CHECKING:
    from t2i.families import ImageTokenizer
    from t2i.pipeline import TextToImagePipeline

PAUSE = 20  # a gap in the journal of more than this many median gaps is a pause between a stop and a resume


class ScoreFile(NamedTuple):
    """The scores of one file."""

    path: Path
    scores: list[Score]


@dataclass(frozen=True)
class ShownRun:
    """One column of the page.

    Attributes:
        name: a short name, unique on the page.
        manifest: manifest of the checkpoint, with the config.
        command: content of command.json, or empty.
        records: records of the journal, in order.
        problems: one line for each file of the run that cannot be read.
        pipe, tokenizer: the model that makes the images; both None: the run makes none.
        parameters: number of parameters of that model.
    """

    name: str
    folder: Path
    family: str
    manifest: Mapping[str, Any]
    command: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()
    scores: Sequence[ScoreFile] = ()
    problems: Sequence[str] = ()
    pipe: "TextToImagePipeline | None" = None
    tokenizer: "ImageTokenizer | None" = None
    parameters: int | None = None

    @property
    def data(self) -> Mapping[str, Any]:
        """Returns the section `data` of the config."""
        return self.manifest["config"]["data"]

    @property
    def view(self) -> View:
        """Returns the view of held-out images: resolution, fit and split seed of the training data."""
        return View(self.data["resolution"], self.data["fit"], None, self.data["split_seed"])

    @property
    def makes_images(self) -> bool:
        return self.pipe is not None or self.tokenizer is not None

    @property
    def unit(self) -> str:
        """Returns the unit of the scores of images: PSNR in dB for a tokenizer."""
        return " dB" if self.tokenizer is not None else ""

    def seconds(self) -> float | None:
        """Returns the seconds of training, without pauses between a stop and a resume; None if the journal has no times."""
        times = [float(record["time"]) for record in self.records if "time" in record]
        gaps = [late - early for early, late in zip(times, times[1:], strict=False)]
        usual = median([gap for gap in gaps if gap > 0] or [0.0])
        return sum(gap for gap in gaps if 0 <= gap <= PAUSE * max(usual, 1.0)) + usual if gaps else None

    def speed(self) -> float | None:
        """Returns the mean number of training images per second, or None if it is unknown."""
        values = [record.get("images_per_second") for record in self.records]
        known = [float(value) for value in values if isinstance(value, int | float)]
        return sum(known) / len(known) if known else None


def open_runs(places: Sequence[str | Path]) -> list[ShownRun]:
    """Opens the runs, each with a unique name.

    Raises:
        InputError: a folder is not a run, has no checkpoint, or is named twice.
    """
    paths = [find(place) for place in places]
    real = [os.path.realpath(path) for path in paths]
    if twice := [path for path, full in zip(paths, real, strict=True) if real.count(full) > 1]:
        raise InputError(f"{twice[0]} is named twice; name each run once")
    names = [os.path.basename(path) for path in real]
    names = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return [open_run(place, name) for place, name in zip(paths, names, strict=True)]


def open_run(folder: Path, name: str) -> ShownRun:
    """Opens a run directory of any family, or a saved pipeline.

    Raises:
        InputError: the folder is neither, or has no intact checkpoint.
    """
    if not folder.is_dir() or not any((folder / part).exists() for part in ("checkpoints", "config.yaml", INDEX)):
        what = "does not exist" if not folder.exists() else "is not a run: it holds no checkpoints"
        raise InputError(f"{folder} {what}; name a run directory of t2i train")
    from t2i.trained import open_run as open_trained
    from t2i.trained import refuse_links

    refuse_links(folder, "config.yaml", "command.json", "journal.jsonl")
    family = family_of(folder) if (folder / "config.yaml").is_file() else None
    scores, problems = score_files(folder)
    fields: dict[str, Any] = {
        "command": read_object(folder / "command.json"),
        "records": journal.read(folder / "journal.jsonl"),
        "scores": scores,
        "problems": problems,
    }
    if family is None or (known := FAMILIES.get(family)) is None or known.sampler:
        from t2i.hardware import device
        from t2i.pipeline import TextToImagePipeline

        pipe = TextToImagePipeline.from_pretrained(folder, device())
        fields |= {"pipe": pipe, "parameters": parameters_of(pipe.sampler.components())}
        return ShownRun(name, folder, pipe.family, pipe.manifest, **fields)
    run = open_trained(folder)
    if known.tokenizer:
        tokenizer = tokenizer_of(run)
        fields |= {"tokenizer": tokenizer, "parameters": parameters_of(tokenizer.components())}
    return ShownRun(name, folder, run.family, run.manifest, **fields)


def score_files(folder: Path) -> tuple[list[ScoreFile], list[str]]:
    """Returns the score files of a run in the order of the splits, and a line for each that cannot be read."""
    files, problems = [], []
    for path in sorted(folder.glob("scores*.json")):
        try:
            scores = read_scores(path)
        except InputError as error:
            problems.append(str(error))
            continue
        if scores:
            files.append(ScoreFile(path, scores))
    order = [*get_args(Split), None]

    def place(file: ScoreFile) -> int:
        split = file.scores[0].protocol.split
        return order.index(split) if split in order else len(order)

    return sorted(files, key=place), problems
