"""Measures a training on this machine: a few real steps of the program itself, in a temporary folder.

`t2i quickstart`, `t2i fit` and `--dry-run` all measure in this way.
"""

import io
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from t2i.cli.fit.record import Run
from t2i.errors import InputError

# Images/s of the tokenizer of the quickstart on two free cores with bf16 (LOG.md): the unit of a machine's speed
REFERENCE_SPEED = 490.0
STEPS, MOST_MINUTES = 16, 0.5  # of a measurement
LEAST_IMAGES, IMAGES = 256, 512 * 32 * 32  # images that it reads: so many pixels of them, but at least 256
SETTINGS = (
    f"max_train_steps={STEPS}",
    f"max_train_minutes={MOST_MINUTES}",
    "log_steps=4",
    "gradient_accumulation_steps=1",
    "validation_n=2",
    "validation_steps=1000000",
    "checkpointing_steps=1000000",
    "report_to=none",
)


class Measured(NamedTuple):
    """What a few steps of a training showed.

    Attributes:
        images_per_second: of the fastest of them, on this process.
        parameters, device: as the run told them.
        memory: peak bytes of GPU memory, or of the whole process where there is no GPU.
    """

    images_per_second: float
    parameters: str
    device: str
    memory: int


def measured(family: str, source: str, sets: Sequence[str], command: Run, data: str | None = None) -> Measured:
    """Trains a few steps of `t2i train FAMILY --config SOURCE` and deletes them.

    Args:
        source: a shipped config or a YAML file.
        sets: overrides of it; the number of images, `data.limit`, is one where it matters.
        data: its address; None: as in the config.

    Raises:
        InputError: the training cannot begin; as it said.
        SystemExit: it was stopped.
    """
    from t2i.training.journal import read

    with tempfile.TemporaryDirectory(prefix="t2i-probe-") as folder:
        run, said = Path(folder) / "run", io.StringIO()
        words = [word for value in (*sets, *SETTINGS) for word in ("--set", value)]
        words += [] if data is None else ["--data", data]
        start_of_memory()
        with redirect_stderr(said), redirect_stdout(said):
            status = command(["train", family, "--config", source, *words, "--run-dir", str(run)])
        told = said.getvalue()
        if status == 2:
            raise InputError(next((line[7:] for line in told.splitlines() if line.startswith("error: ")), told[-200:]))
        if status:
            sys.stderr.write(told)
            raise SystemExit(status)
        records = read(run / "journal.jsonl")
    speeds = [found["images_per_second"] for found in records if "images_per_second" in found]
    return Measured(max(speeds, default=0.0), _line(told, "parameters"), _line(told, "device"), peak_memory())


def machine_speed(command: Run) -> float:
    """Measures this machine by the training of a small tokenizer, in units of the reference."""
    print("measuring this machine by a few training steps", flush=True)
    found = measured("vqvae", "vqvae-tiny", ["data.limit=512"], command, "shapes-1")
    return max(round(found.images_per_second / REFERENCE_SPEED, 3), 0.001)


def images_for(resolution: int, batch: int, limit: int | None) -> int:
    """Returns how many training images a measurement needs: at most `limit`."""
    needed = max(LEAST_IMAGES, 4 * batch, IMAGES // resolution**2)
    return needed if limit is None else min(limit, needed)


def _line(told: str, what: str) -> str:
    found = re.search(rf"^{what}: (.*)$", told, re.MULTILINE)
    return found[1] if found else ""


def start_of_memory() -> None:
    """Begins to watch the peak of GPU memory anew."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Returns the most GPU memory since `start_of_memory`, or what the process had at its most where there is no GPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset  # pyright: ignore[reportAttributeAccessIssue]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
