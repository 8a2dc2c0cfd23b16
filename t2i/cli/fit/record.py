"""The commands of a plan, and a record of the time and the inputs of each."""

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
    inputs: tuple[Path, ...] = ()  # files and runs that the result depends on; empty for a training, which can resume

    @property
    def command(self) -> str:
        return shlex.join(["t2i", *self.argv])


class Timings:
    """The file `timings.json` in the folder of a plan."""

    def __init__(self, path: Path):
        from t2i.files import read_object

        self.path, self._entries = path, read_object(path)

    def _entry(self, step: Step) -> Mapping[str, Any]:
        entry = self._entries.get(step.name)
        return entry if isinstance(entry, dict) else {}

    def seconds(self, step: Step) -> float:
        """Returns the time spent on a step, including the earlier time of a resumed training."""
        seconds = self._entry(step).get("seconds", 0.0)
        return float(seconds) if isinstance(seconds, int | float) else 0.0

    def command(self, step: Step) -> str:
        """Returns the command that created the result."""
        return str(self._entry(step).get("command", step.command))

    def finished(self, step: Step) -> bool:
        """Returns True if the same command has succeeded on the present weights and prompts."""
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
            state = {"command": step.command, "inputs": digest(step.inputs)}
            self._entries[step.name] = {"seconds": seconds, "status": status, **state}
            self._write()
        return status

    def _write(self) -> None:
        from t2i.files import write_text

        write_text(self.path, json.dumps(self._entries, indent=1, ensure_ascii=False) + "\n")


def digest(inputs: Sequence[Path]) -> str:
    """Returns a hash of the contents of files and of the newest checkpoints of runs."""
    from t2i.files import read_regular

    total = hashlib.sha256()
    for path in inputs:
        files = [path] if path.is_file() else sorted((path / "checkpoints").glob("step-*/manifest.json"))[-1:]
        for file in files:
            total.update(hashlib.sha256(read_regular(file)).digest())
    return total.hexdigest()
