"""Measures training on this machine by a few real steps of a training program in a temporary folder.

`t2i quickstart`, `t2i fit` and `--dry-run` use it.
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

# images/s of the quickstart's tokenizer on two free cores with bf16 (LOG.md), the unit of a machine's speed
REFERENCE_SPEED = 490.0
STEPS, MOST_MINUTES = 16, 0.5  # limits of a measurement
LEAST_IMAGES, IMAGES = 256, 512 * 32 * 32  # number of images and of pixels that it reads at least
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
    """Measurements of a few training steps.

    Attributes:
        images_per_second: the highest speed, on this process.
        parameters, device: descriptions that the run printed.
        memory: peak GPU memory in bytes, or memory of the process without a GPU.
    """

    images_per_second: float
    parameters: str
    device: str
    memory: int


def measured(family: str, source: str, sets: Sequence[str], command: Run, data: str | None = None) -> Measured:
    """Trains a few steps of `t2i train FAMILY --config SOURCE` and deletes them.

    Args:
        source: a shipped config or a YAML file.
        sets: overrides of the config, which should include `data.limit`.
        data: address of the data; None: that of the config.

    Raises:
        InputError: the training cannot start; with its message.
        SystemExit: the training was stopped.
    """
    from t2i.training.journal import read

    with tempfile.TemporaryDirectory(prefix="t2i-probe-") as folder:
        run, stream = Path(folder) / "run", io.StringIO()
        words = [word for value in (*sets, *SETTINGS) for word in ("--set", value)]
        words += [] if data is None else ["--data", data]
        start_of_memory()
        with redirect_stderr(stream), redirect_stdout(stream):
            status = command(["train", family, "--config", source, *words, "--run-dir", str(run)])
        output = stream.getvalue()
        if status == 2:
            errors = [line[7:] for line in output.splitlines() if line.startswith("error: ")]
            raise InputError(errors[0] if errors else output[-200:])
        if status:
            sys.stderr.write(output)
            raise SystemExit(status)
        records = read(run / "journal.jsonl")
    speeds = [record["images_per_second"] for record in records if "images_per_second" in record]
    return Measured(max(speeds, default=0.0), _line(output, "parameters"), _line(output, "device"), peak_memory())


def machine_speed(command: Run) -> float:
    """Returns the speed of this machine at training a small tokenizer, in units of the reference."""
    print("measuring this machine by a few training steps", flush=True)
    measurement = measured("vqvae", "vqvae-tiny", ["data.limit=512"], command, "shapes-1")
    return max(round(measurement.images_per_second / REFERENCE_SPEED, 3), 0.001)


def images_for(resolution: int, batch: int, limit: int | None) -> int:
    """Returns the number of training images that a measurement reads, at most `limit`."""
    needed = max(LEAST_IMAGES, 4 * batch, IMAGES // resolution**2)
    return needed if limit is None else min(limit, needed)


def _line(output: str, what: str) -> str:
    match = re.search(rf"^{what}: (.*)$", output, re.MULTILINE)
    return match[1] if match else ""


def start_of_memory() -> None:
    """Resets the peak of GPU memory."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Returns the peak of GPU memory since `start_of_memory`, or the peak memory of the process without a GPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset  # pyright: ignore[reportAttributeAccessIssue]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
