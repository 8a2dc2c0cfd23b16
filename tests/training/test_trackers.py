"""Trackers: the calls that a fake one gets from a real run, names, and real ones if they are installed."""

import importlib.util
import sys
import types
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, get_args

import pytest
from accelerate import tracking
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import LoggerType
from PIL import Image

from builders.forks import fork, wait
from builders.toy_run import config, train
from t2i.config.load import load
from t2i.config.training import TrainConfig
from t2i.errors import InputError
from t2i.training.run import Run
from t2i.training.trackers import TRACKERS, refuse_missing
from t2i.training.validation import note_validation

GRID_SIZE = (24, 16)


def grid_and_scores(run: Run) -> None:
    """Returns the result of a validation at step 2."""
    if run.step == 2:
        (run.directory / "samples").mkdir(exist_ok=True)
        Image.new("RGB", GRID_SIZE, (255, 0, 0)).save(run.directory / "samples" / f"step-{run.step:08d}.png")
        note_validation(run, {"recall@1": 0.25, "lost": float("nan")}, None, 64)


def go(directory: Path, name: str) -> None:
    train(directory, config(max_train_steps=3, log_steps=1, report_to=name), grid_and_scores)


class FakeWandb(types.ModuleType):
    """The part of wandb that Accelerate calls."""

    def __init__(self, broken_at: int = 99):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.started: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished, self.broken_at = 0, broken_at
        self.config: Any = {}

    def init(self, **words: Any) -> "FakeWandb":
        self.started = words
        self.config = types.SimpleNamespace(update=lambda values, **_: self.started.update(config=values))
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        if step >= self.broken_at:
            raise ConnectionError("no route to host")
        self.logged.append((step, values))

    def Image(self, array: Any) -> tuple[int, ...]:
        return array.shape

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    return module


def test_a_tracker_gets_config_scalars_scores_and_grids(fake: FakeWandb, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    go(run, "wandb")
    assert (fake.started["project"], fake.started["name"], fake.started["dir"]) == ("t2i", "my run", str(run))
    assert fake.started["config"]["max_train_steps"] == 3
    losses = {step for step, values in fake.logged if any("loss" in name for name in values)}
    assert losses == {1, 2, 3}
    assert (2, {"val_recall_at_1": 0.25}) in fake.logged, "no `@`, which some refuse, and no NaN"
    assert (2, {"samples": [(GRID_SIZE[1], GRID_SIZE[0], 3)]}) in fake.logged
    assert fake.finished == 1


def test_a_tracker_that_fails_is_told_no_more_and_the_run_goes_on(fake: FakeWandb, tmp_path: Path) -> None:
    fake.broken_at = 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        go(tmp_path, "wandb")
    told = [str(one.message) for one in caught if "tracker" in str(one.message)]
    assert told == ["tracker wandb failed and is no longer used (ConnectionError: no route to host)"]
    assert {step for step, _ in fake.logged} == {1} and (tmp_path / "checkpoints" / "step-00000003").is_dir()


def test_a_tracker_that_cannot_start_leaves_no_run(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setattr(fake, "init", refuse)
    with pytest.raises(InputError) as caught:
        go(tmp_path / "run", "wandb")
    assert str(caught.value) == (
        "tracker wandb cannot start (RuntimeError: api_key not configured (no-tty)); log in with `wandb login`, or set "
        "WANDB_MODE=offline, or set report_to=none"
    )
    assert not (tmp_path / "run").exists()


def test_every_tracker_of_accelerate_can_be_named_and_no_other() -> None:
    every = {str(kind) for kind in LOGGER_TYPE_TO_CLASS}
    assert set(TRACKERS) == every
    assert set(get_args(TrainConfig.model_fields["report_to"].annotation)) == every | {"none"}
    with pytest.raises(InputError, match=r"report_to: must be 'none', .*, got 'comet' .*; did you mean comet_ml\?"):
        load(TrainConfig, None, ["report_to=comet"])


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(InputError) as caught:
        refuse_missing(name)
    package = TRACKERS[name].package
    assert str(caught.value) == f"report_to {name} needs its package: pip install {package}, or set report_to=none"
    refuse_missing("none")


def in_a_child(directory: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains with a real tracker, all of whose files are below `directory`."""
    if importlib.util.find_spec(TRACKERS[name].module) is None:
        pytest.skip(f"{TRACKERS[name].package} is not installed")
    home = directory / "home"
    home.mkdir()
    for key in ("HOME", "HF_HOME", "TRACKIO_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(key, str(home))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    monkeypatch.chdir(directory)
    assert wait(fork(lambda: go(directory / "run", name))) == 0


def test_tensorboard_gets_scalars_scores_and_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_child(tmp_path, "tensorboard", monkeypatch)
    events = b"".join(path.read_bytes() for path in (tmp_path / "run" / "tensorboard").rglob("events*"))
    assert all(name in events for name in (b"loss", b"val_recall_at_1", b"samples", b"PNG"))


def test_wandb_offline_keeps_a_run_with_its_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_child(tmp_path, "wandb", monkeypatch)
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert b"val_recall_at_1" in next(kept.glob("*.wandb")).read_bytes()
    assert len(list(kept.rglob("samples_*.png"))) == 1


def test_trackio_keeps_a_run_with_its_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_child(tmp_path, "trackio", monkeypatch)
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert any(b"val_recall_at_1" in path.read_bytes() for path in kept), kept
    assert any(path.suffix == ".png" for path in kept), kept


def test_mlflow_keeps_a_run_with_its_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_child(tmp_path, "mlflow", monkeypatch)
    assert b"val_recall_at_1" in (tmp_path / "home" / "mlflow.db").read_bytes()
    assert len(list(tmp_path.rglob("step-00000002.png"))) == 2, "the run's own and the tracker's"
