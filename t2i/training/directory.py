"""Reads and writes a run directory: its lock, its description (config.yaml, command.json) and why its run stopped."""

import json
import os
import platform
import shutil
import socket
import subprocess
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import lock_descriptor

import t2i
from t2i import checkpoint
from t2i.config.load import to_yaml
from t2i.config.training import TrainConfig
from t2i.errors import InputError
from t2i.files import read_regular, write_text
from t2i.trained import RECORD, refuse_links

STOPPED = "STOPPED"

# files and folders that training reads or writes in a run directory
OWN = (
    ".lock", "config.yaml", "command.json", "journal.jsonl", "quarantine.jsonl", STOPPED, RECORD, "tokenizer.json",
    "text", "tokenizer", "image", "samples", "checkpoints", "tensorboard", "wandb", "dvclive", "swanlab",
)  # fmt: skip


def refuse_anothers(directory: Path, family: str) -> None:
    """Raises InputError if `directory` holds a run of another family, or a config.yaml that belongs to no run."""
    command = directory / "command.json"
    if not command.exists():
        # a run with checkpoints may have lost the file: their manifests name the family
        if (directory / "config.yaml").exists() and not checkpoint.steps(directory / "checkpoints"):
            raise InputError(f"{directory} holds a config.yaml but is not a run; name a new directory")
        return
    try:
        present = json.loads(read_regular(command))["family"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        present = family  # the file is damaged: the manifest of the checkpoint decides
    if present != family:
        raise InputError(f"{directory} holds a run of {present}, not of {family}; name another directory")


def describe(directory: Path, config: TrainConfig, family: str, argv: Sequence[str], facts: dict[str, Any]) -> None:
    """Writes config.yaml and command.json; `facts` are further entries of command.json that the running process knows."""
    versions = {"t2i": t2i.__version__, "python": platform.python_version(), "torch": torch.__version__}
    command = {
        "family": family,
        "argv": list(argv),
        "versions": versions | {"accelerate": metadata.version("accelerate")},
        "git": _git_commit(),
        **facts,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    # in this order, as `refuse_anothers` takes a config.yaml alone for a foreign file
    write_text(directory / "command.json", json.dumps(command, indent=1) + "\n")
    write_text(directory / "config.yaml", to_yaml(config))


def write_stopped(directory: Path, reason: str, step: int, saved: int) -> None:
    """Writes to a file why a run ended early, for schedulers that do not see its exit status; resuming deletes the file."""
    if directory.is_dir():
        what = f"checkpoint of step {saved}" if saved else "no checkpoint"
        with suppress(InputError):
            write_text(directory / STOPPED, f"{reason} at step {step}; {what}; the same command resumes\n")


def report_crash(directory: Path, why: str, step: int, saved: int) -> None:
    """Writes to stderr and to a file why a run ends in the middle of a step."""
    last = f"the last checkpoint is of step {saved}" if saved else "there is no checkpoint yet"
    with suppress(OSError):
        os.write(2, f"\nerror: {why}; the run ends at step {step}, {last}; the same command resumes\n".encode())
    write_stopped(directory, why, step, saved)


def quarantine(directory: Path, broken: Mapping[str, Any]) -> None:
    """Adds an image that cannot be decoded to quarantine.jsonl, if it is not there yet, and warns about it."""
    path, line = directory / "quarantine.jsonl", json.dumps(dict(broken))
    if path.exists() and line.encode() in read_regular(path).splitlines():
        return
    with open(path, "a") as file:
        file.write(line + "\n")
    warnings.warn(
        f"{broken['id']} cannot be decoded and is replaced by the next image: {broken['reason']}", stacklevel=3
    )


def _git_commit() -> str | None:
    """Returns the commit of the checkout that this package runs from; None for an installed package."""
    root = Path(t2i.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        out = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() if out.returncode == 0 else None


_HELD: set[int] = set()  # file descriptors of locks


def _forget_locks() -> None:
    """Closes inherited locks in a forked child: a data worker that outlives its killed parent must not hold them."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget_locks)


class DirectoryLock:
    """The file `.lock` in a run directory, locked while this process lives; the kernel releases it however it ends.

    Raises:
        InputError: another process holds the lock; the message names that process.
    """

    def __init__(self, directory: Path):
        self._directory, self._path = directory, directory / ".lock"
        existed = directory.exists()
        self._descriptor = self._take()
        while not self.is_in_place():  # its previous owner deleted the file before it was locked here
            os.close(self._descriptor)
            self._descriptor = self._take()
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, json.dumps(owner).encode())
        _HELD.add(self._descriptor)
        self._before = set(os.listdir(directory)) - {".lock"} if existed else None

    def _take(self) -> int:
        self._directory.mkdir(parents=True, exist_ok=True)
        refuse_links(self._directory, *OWN)
        # does not follow a link created since the check; Windows has neither flag
        unfollowed = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | unfollowed, 0o644)
        try:
            taken = lock_descriptor(descriptor, blocking=False)
        except OSError as error:
            why, taken = error.strerror, True
            warnings.warn(f"no lock in {self._directory} ({why}): start one run there at a time", stacklevel=3)
        if not taken:
            os.close(descriptor)
            raise InputError(_held_by(self._directory, self._path))
        return descriptor

    def is_in_place(self) -> bool:
        """Returns False once the directory or the lock file was deleted or renamed."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except OSError:
            return False

    def moved_to(self) -> Path | None:
        """Returns the new path of a renamed directory; None if it was deleted or the system does not tell."""
        try:
            target = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))
            return target.parent if os.path.samestat(os.stat(target), os.fstat(self._descriptor)) else None
        except OSError:
            return None

    def refuse_gone(self, step: int, saved: int) -> None:
        """Raises InputError if the directory was deleted or renamed; `saved` is the step of the last checkpoint."""
        if self.is_in_place():
            return
        moved = self.moved_to()
        what = f"was renamed to {moved}" if moved else "was deleted or replaced"
        raise InputError(
            f"run directory {self._directory} {what} while the run was at step {step}, so nothing more can be saved (last "
            f"checkpoint: {f'step {saved}' if saved else 'none'}); run the same command again with the present directory"
        )

    def remove_new(self) -> None:
        """Deletes everything created in the directory since it was locked, and the directory if the lock created it.

        The lock file is deleted last, so that a second run that starts meanwhile never sees a half-deleted directory.
        """
        new = set(os.listdir(self._directory)) - (self._before or set())
        for name in sorted(new, key=lambda name: (name == ".lock", name)):
            path = self._directory / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if self._before is None:
            with suppress(OSError):  # another file was created there meanwhile
                self._directory.rmdir()

    def release(self) -> None:
        """Releases the directory for other runs; may be called twice."""
        if self._descriptor in _HELD:
            _HELD.remove(self._descriptor)
            os.close(self._descriptor)


def _held_by(directory: Path, path: Path) -> str:
    try:
        owner = json.loads(read_regular(path, 4096))
        who = f"pid {owner['pid']} on host {owner['host']} since {owner['started']}"
    # the file is not written yet, or cannot be read on Windows, which locks its bytes
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        who = "another process"
    return f"run {directory} is being written by {who}; wait for it, stop it, or name another run directory"
