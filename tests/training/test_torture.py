"""A small part of the tests in `benchmarks/`, which `make torture` runs in full."""

import importlib
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("program", "name", "trials"),
    [
        ("torture_runs", "kills", 5),
        ("torture_runs", "signals", 3),
        ("torture_runs", "steps", 4),
        ("torture_runs", "races", 2),
        ("torture_runs", "data", 3),
        ("torture_runs", "resumes", 1),
        ("torture_order", "order", 1),
        ("torture_order", "disk", 4),
        ("torture_files", "readers", 8),
    ],
)
def test_no_trial_fails(tmp_path: Path, monkeypatch, program: str, name: str, trials: int) -> None:
    monkeypatch.syspath_prepend(str(PROGRAMS))
    for module in ("torture_runs", program):
        monkeypatch.delitem(sys.modules, module, raising=False)
    runs, proofs = importlib.import_module("torture_runs"), importlib.import_module(program).PROOFS
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    runs.warm_up()
    found = runs.prove(name, trials, tmp_path, 1, proofs)
    assert sum(found.values()) == trials and not [what for what in found if runs.failed(what)], found
