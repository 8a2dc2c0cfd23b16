"""Folders written by `t2i export --page`, each made once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from builders.exportable_runs import RUNS
from t2i.cli import app
from t2i.export import writing


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Callable[[str], tuple[Path, Path]]:
    """Returns (the run, its export) of a key of RUNS, or of a model that ships with the package."""
    for package in writing.NEEDED["onnx"]:
        pytest.importorskip(package)
    done: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            run = RUNS[name](folder / "run") if name in RUNS else Path(name)
            assert app.main(["export", str(run), str(folder / "out"), "--page", "-n", "1"]) == 0
            done[name] = run, folder / "out"
        return done[name]

    return make
