"""The papers of a run directory: whose it is, and config.yaml and command.json, which say how it was started."""

import json
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import t2i
from t2i.config import to_yaml
from t2i.errors import InputError
from t2i.folders import write_text
from t2i.run_config import TrainConfig


def refuse_anothers(directory: Path, family: str) -> None:
    """Raises InputError when `directory` holds a run of another family, or a config that is no run's."""
    command = directory / "command.json"
    if not command.exists():
        if (directory / "config.yaml").exists():
            raise InputError(f"{directory} holds a config.yaml and is no run; name a new directory")
        return
    try:
        held = json.loads(command.read_text())["family"]
    except (ValueError, KeyError, TypeError):
        held = family  # damaged: the manifest of the checkpoint decides
    if held != family:
        raise InputError(f"{directory} holds a run of {held}, not of {family}; name another directory")


def describe(directory: Path, config: TrainConfig, family: str, argv: Sequence[str], facts: dict[str, Any]) -> None:
    """Writes config.yaml and command.json; `facts` are what only the running process knows."""
    versions = {"t2i": t2i.__version__, "python": platform.python_version(), "torch": torch.__version__}
    command = {
        "family": family,
        "argv": list(argv),
        "versions": versions | {"accelerate": metadata.version("accelerate")},
        "git": _git_commit(),
        **facts,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    # in this order: a config.yaml alone is taken for somebody else's
    write_text(directory / "command.json", json.dumps(command, indent=1) + "\n")
    write_text(directory / "config.yaml", to_yaml(config))


def _git_commit() -> str | None:
    """Commit of the checkout that this package runs from, None for an installed one."""
    root = Path(t2i.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        out = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() if out.returncode == 0 else None
