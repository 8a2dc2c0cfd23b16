"""A small part of `benchmarks/torture_runs.py`, which `make torture` runs in full."""

import importlib.util
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "torture_runs.py"


@pytest.mark.parametrize(
    ("name", "trials"), [("kills", 5), ("signals", 3), ("steps", 4), ("races", 2), ("data", 3), ("resumes", 1)]
)
def test_no_trial_fails(tmp_path: Path, monkeypatch, name: str, trials: int) -> None:
    spec = importlib.util.spec_from_file_location("torture_runs", PROGRAM)
    assert spec is not None and spec.loader is not None
    torture = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "torture_runs", torture)
    spec.loader.exec_module(torture)
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    torture.warm_up()
    found = torture.prove(name, trials, tmp_path, seed=1)
    assert sum(found.values()) == trials and not [what for what in found if what.split()[0].isupper()], found
