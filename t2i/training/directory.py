"""The papers of a run directory: whose it is, and config.yaml and command.json, which say how it was started."""

import fcntl
import json
import os
import platform
import socket
import subprocess
import time
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import t2i
from t2i.config.load import to_yaml
from t2i.config.training import TrainConfig
from t2i.errors import InputError
from t2i.files import write_text


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


_HELD: set[int] = set()  # descriptors of locks


def _forget_locks() -> None:
    """In a forked child: a data worker that outlives its killed parent must not keep the parent's lock."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_forget_locks)


class DirectoryLock:
    """`.lock` in a run directory, held while this process lives. The kernel frees it however the process ends.

    Raises:
        InputError: another process holds it; the message names it.
    """

    def __init__(self, directory: Path):
        path = directory / ".lock"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise InputError(_held_by(directory, path)) from None
        except OSError as error:
            warnings.warn(f"no lock in {directory} ({error.strerror}): start one run there at a time", stacklevel=2)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(owner).encode(), 0)
        _HELD.add(self._descriptor)

    def release(self) -> None:
        if self._descriptor in _HELD:
            _HELD.remove(self._descriptor)
            os.close(self._descriptor)


def _held_by(directory: Path, path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        who = f"pid {owner['pid']} on host {owner['host']} since {owner['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # not written yet
        who = "another process"
    return f"run {directory} is being written by {who}; wait for it, stop it, or name another run directory"
