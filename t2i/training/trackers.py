"""Reports the scalars, validation scores and sample grids of a run to the tracker that `report_to` names.

Accelerate starts the tracker and passes scalars to it; sample grids are passed in the form that each tracker takes.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from t2i.errors import InputError, reason_of
from t2i.names import installed

PROJECT = "t2i"
GRID = "samples"  # the name of a sample grid


class Tracker(NamedTuple):
    """How to start and feed one of Accelerate's trackers.

    Attributes:
        module, package: the module that it needs, and the package that pip installs it from.
        place: returns start options that put its files into the run's directory and give it the run's name.
        show: passes on the image file of a step; takes Accelerate's tracker, the file and the step.
        advice: what to do if it cannot start.
    """

    module: str
    package: str
    place: Callable[[Path], dict[str, Any]]
    show: Callable[[Any, Path, int], Any]
    advice: str = "check its settings"


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _show_tensorboard(tracker: Any, path: Path, step: int) -> None:
    tracker.log_images({GRID: _pixels(path)[None]}, step=step, dataformats="NHWC")


def _show_list(tracker: Any, path: Path, step: int) -> None:
    tracker.log_images({GRID: [_pixels(path)]}, step=step)


def _show_one(tracker: Any, path: Path, step: int) -> None:
    tracker.log_images({GRID: _pixels(path)}, step=step)


def _show_trackio(tracker: Any, path: Path, step: int) -> None:
    import trackio  # pyright: ignore[reportMissingImports]

    tracker.log({GRID: trackio.Image(str(path))}, step=step)


TRACKERS: Mapping[str, Tracker] = {
    "tensorboard": Tracker("tensorboard", "tensorboard", lambda run: {}, _show_tensorboard),
    "wandb": Tracker(
        "wandb",
        "wandb",
        lambda run: {"dir": str(run), "name": run.name},
        _show_list,
        "log in with `wandb login`, or set WANDB_MODE=offline",
    ),
    "trackio": Tracker("trackio", "trackio", lambda run: {"name": run.name}, _show_trackio),
    "comet_ml": Tracker(
        "comet_ml",
        "comet_ml",
        lambda run: {},
        lambda tracker, path, step: tracker.tracker.log_image(str(path), name=GRID, step=step),
        "set COMET_API_KEY, or COMET_START_ONLINE=0 to work offline",
    ),
    "aim": Tracker("aim", "aim", lambda run: {}, _show_one),
    "mlflow": Tracker(
        "mlflow",
        "mlflow",
        lambda run: {"run_name": run.name},
        lambda tracker, path, step: tracker.log_artifact(str(path), GRID),
        "check that MLFLOW_TRACKING_URI can be reached",
    ),
    "clearml": Tracker(
        "clearml",
        "clearml",
        lambda run: {"task_name": run.name},
        _show_one,
        "run `clearml-init`, or set CLEARML_OFFLINE_MODE=1",
    ),
    "dvclive": Tracker(
        "dvclive",
        "dvclive",
        lambda run: {"dir": str(run / "dvclive")},
        lambda tracker, path, step: tracker.tracker.log_image(f"{GRID}.png", str(path)),
    ),
    "swanlab": Tracker(
        "swanlab",
        "swanlab",
        lambda run: {"logdir": str(run / "swanlab"), "experiment_name": run.name},
        _show_list,
        "log in with `swanlab login`, or set SWANLAB_MODE=offline",
    ),
}


def refuse_missing(name: str) -> None:
    """Raises InputError if the tracker that `report_to` names is not installed."""
    if name != "none" and not installed(TRACKERS[name].module):
        raise InputError(
            f"report_to {name} needs its package: pip install {TRACKERS[name].package}, or set report_to=none"
        )


class Tracking:
    """Reports a run to its tracker; has no effect with `report_to=none`.

    If the tracker fails later, for example without a network, a warning is given and the run continues without it.

    Args:
        accelerator: made with `log_with` of that name.
        name: name of the tracker, or `none`.
        directory: the run directory.
    """

    def __init__(self, accelerator: Any, name: str, directory: Path):
        self._accelerator, self._name, self._directory = accelerator, name, directory
        self._on = False

    def start(self, config: Mapping[str, Any]) -> None:
        """Starts the tracker with the run's config; call it on the main process.

        Raises:
            InputError: the tracker cannot start; the message quotes its error and suggests a fix.
        """
        if self._name == "none":
            return
        tracker = TRACKERS[self._name]
        values = {key: value if isinstance(value, int | float | str) else str(value) for key, value in config.items()}
        # TensorBoard names the folder of its events after the project
        project = self._name if self._name == "tensorboard" else PROJECT
        place = {self._name: tracker.place(self._directory.resolve())}
        try:
            self._accelerator.init_trackers(project, config=values, init_kwargs=place)
            if not self._accelerator.trackers:
                raise ImportError(f"Accelerate finds no usable {tracker.package}")
        except Exception as error:  # each tracker raises its own kinds of errors
            raise InputError(
                f"tracker {self._name} cannot start ({reason_of(error)}); {tracker.advice}, or set report_to=none"
            ) from error
        self._on = True

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Passes finite scalars to the tracker. `@` in names is replaced, as MLflow and SwanLab do not accept it."""
        plain = {key.replace("@", "_at_"): value for key, value in scalars.items() if math.isfinite(value)}
        self._try(lambda: self._accelerator.log(plain, step=step))

    def show(self, path: Path, step: int) -> None:
        """Passes the image file of a step to the tracker, if the file exists."""
        if self._on and path.is_file():
            for tracker in self._accelerator.trackers:
                self._try(lambda: TRACKERS[self._name].show(tracker, path, step))  # noqa: B023  # called at once

    def close(self) -> None:
        """Lets the tracker write what it has buffered; may be called twice."""
        for tracker in self._accelerator.trackers if self._on else ():
            self._try(tracker.finish)
        self._on = False

    def _try(self, action: Callable[[], Any]) -> None:
        if not self._on:
            return
        try:
            action()
        except Exception as error:
            self._on = False
            warnings.warn(f"tracker {self._name} failed and is no longer used ({reason_of(error)})", stacklevel=4)
