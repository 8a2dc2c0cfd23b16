"""The commands of a plan, and the record of what each took and what its result was made of."""

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Run = Callable[[list[str]], int]  # runs one command line and returns its status


class Step(NamedTuple):
    """One command of a plan."""

    name: str
    argv: list[str]
    result: Path  # exists once the command has run
    inputs: tuple[Path, ...] = ()  # files and runs that the result follows from; none: a training, which can resume

    @property
    def command(self) -> str:
        return shlex.join(["t2i", *self.argv])


class Timings:
    """`timings.json` of the folder in which a plan is carried out."""

    def __init__(self, path: Path):
        from t2i.files import read_regular

        self.path = path
        try:
            found = json.loads(read_regular(path))
        except (OSError, ValueError, RecursionError):
            found = None
        self._entries: dict[str, Any] = found if isinstance(found, dict) else {}

    def _entry(self, step: Step) -> Mapping[str, Any]:
        entry = self._entries.get(step.name)
        return entry if isinstance(entry, dict) else {}

    def seconds(self, step: Step) -> float:
        """Time spent on a step, a resumed training's earlier time included."""
        found = self._entry(step).get("seconds", 0.0)
        return float(found) if isinstance(found, int | float) else 0.0

    def command(self, step: Step) -> str:
        """The command that made its result."""
        return str(self._entry(step).get("command", step.command))

    def finished(self, step: Step) -> bool:
        """True if this very command has gone through, on the weights and prompts of now."""
        now = {"command": step.command, "inputs": digest(step.inputs), "status": 0}
        entry = self._entry(step)
        return step.result.exists() and all(entry.get(key) == value for key, value in now.items())

    def run(self, step: Step, command: Run) -> int:
        """Runs a command and records its time, even if it fails; returns its status."""
        before = self.seconds(step) if step.result.exists() and not step.inputs else 0.0
        if step.inputs and step.result.is_dir():
            shutil.rmtree(step.result)
        began, status = time.monotonic(), 1
        try:
            status = command(step.argv)
        finally:
            seconds = round(before + time.monotonic() - began, 1)
            made_of = {"command": step.command, "inputs": digest(step.inputs)}
            self._entries[step.name] = {"seconds": seconds, "status": status, **made_of}
            self._write()
        return status

    def _write(self) -> None:
        from t2i.files import write_text

        write_text(self.path, json.dumps(self._entries, indent=1, ensure_ascii=False) + "\n")


def digest(inputs: Sequence[Path]) -> str:
    """Hash of the state of files and runs; the state of a run is its newest checkpoint."""
    from t2i.files import read_regular

    found = hashlib.sha256()
    for path in inputs:
        files = [path] if path.is_file() else sorted((path / "checkpoints").glob("step-*/manifest.json"))[-1:]
        for file in files:
            found.update(hashlib.sha256(read_regular(file)).digest())
    return found.hexdigest()
