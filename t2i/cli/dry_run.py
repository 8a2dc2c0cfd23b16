"""`t2i train --dry-run`: opens data, text encoder and tokenizer like the run, and reports sizes, steps, time and memory.

Time and memory of a new run are measured by a few of its steps in a temporary folder, which is deleted. The memory of a prior is
estimated first, for one process and for eight, and steps that need more memory than is free are not tried.
"""

import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from t2i import cli
from t2i.cli.fit.probe import MOST_MINUTES, STEPS, images_for, measured
from t2i.config.load import to_yaml
from t2i.data import NO_CAPTION
from t2i.data.mixture import open_training
from t2i.families import FAMILIES, ImageTokenizer
from t2i.names import counted, number

GB = 1e9
CAPTIONS = 20_000  # enough captions to know the widths of a fitted encoder


def describe(config: Any, run_dir: Path) -> Iterator[tuple[str, str]]:
    """Yields (name, description) of everything that the run would read, and of its length, time and memory.

    Raises:
        InputError: the data, the text encoder or the tokenizer does not exist or cannot be read.
    """
    data = config.data
    bare = FAMILIES[config.family].tokenizer is not None
    train = open_training(data, replay=getattr(config, "replayed", None), bare=bare)
    captions = [caption for options in train.captions for caption in options if caption != NO_CAPTION]
    counts = f"{counted(len(train), 'image')} with {counted(len(captions), 'caption')}"
    yield "data", f"{data.address}: {counts}, {data.resolution} x {data.resolution}"
    if getattr(config, "text", None) is not None:
        yield "text", _text(config.text, captions)
    tokenizer = None
    if hasattr(config, "tokenizer"):
        from t2i.families.tokenizers import load_tokenizer

        tokenizer = load_tokenizer(config.tokenizer.path)
        yield "tokenizer", _tokenizer(config.tokenizer.path, tokenizer, data.resolution)
    yield "training", _length(config, len(train))
    yield "checkpoints", f"every {counted(config.checkpointing_steps, 'step')}, in {run_dir}"
    if speeds := _speeds(run_dir):
        yield "time", _time(config, *speeds)
        return
    if config.family == "prior" and tokenizer is not None:
        from t2i.hardware import free_memory

        needed = yield from _estimate(config, tokenizer, captions)
        if needed > (free := free_memory()):
            yield (
                "time",
                f"not measured: a step needs about {number(needed / GB, 2)} GB here, and {number(free / GB, 2)} GB are free",
            )
            return
    yield from _measure(config, len(train))


def _estimate(config: Any, tokenizer: ImageTokenizer, captions: list[str]) -> Generator[tuple[str, str], None, int]:
    """Yields estimates of a process's memory, sharded and not; returns the bytes that a measurement needs here."""
    from t2i.hardware import device, has_bf16
    from t2i.prior.memory import TextSizes, memory
    from t2i.prior.transformer import Grid
    from t2i.text import fit_encoder

    encoder = fit_encoder(config.text, captions[:CAPTIONS])
    text = TextSizes(encoder.token_dim, encoder.pooled_dim, encoder.max_tokens)
    grid = Grid(tokenizer.grid, tokenizer.grid, tokenizer.codebooks, tokenizer.codebook_size)
    bf16 = config.mixed_precision == "bf16" or config.mixed_precision == "auto" and has_bf16(device())
    ways = [(1, "none", False), (1, "none", True), (8, "none", False), (8, "full", False), (8, "full", True)]
    for processes, sharding, recompute in ways:
        changed = config.model_copy(update={"sharding": sharding, "activation_checkpointing": recompute})
        needed = memory(changed, grid, text, processes, bf16)
        if processes == 1 and not recompute:
            yield "sizes", f"{needed.parameters:,} parameters; estimated memory of a process in GB:"
        parts = {
            "weights": needed.weights,
            "gradients": needed.gradients,
            "moments": needed.moments,
            "averages": needed.averages,
            "exchange": needed.gathered,
            "activations": needed.activations,
        }
        words = ", ".join(f"{name} {number(part / GB)}" for name, part in parts.items())
        way = f"{processes} x" + ", sharded" * (sharding == "full") + ", activation_checkpointing" * recompute
        yield "", f"{way}: {number(needed.total / GB)} ({words})"
    own = config.model_copy(update={"gradient_accumulation_steps": 1})
    return memory(own, grid, text, 1, bf16).total


def _text(config: Any, captions: list[str]) -> str:
    from t2i.text import fit_encoder

    if config.path is None and config.encoder != "aligned":
        return f"{config.encoder}, fitted on the training captions"
    encoder = fit_encoder(config, captions)
    place = config.path or "the encoder of the shipped models"
    return f"{config.encoder} ({place}), {counted(encoder.max_tokens, 'token')} of width {encoder.token_dim}"


def _tokenizer(path: str, tokenizer: ImageTokenizer, resolution: int) -> str:
    codes = f"{tokenizer.grid**2 * tokenizer.codebooks:,} codes per image out of {tokenizer.codebook_size:,}"
    if tokenizer.resolution != resolution:
        codes += f"; trained at {tokenizer.resolution} pixels, but the data has {resolution}"
    return f"{path}: {codes}"


def _length(config: Any, images: int) -> str:
    batch = config.train_batch_size * config.gradient_accumulation_steps
    seen = config.max_train_steps * batch
    limit = "" if config.max_train_minutes is None else f", at most {counted(config.max_train_minutes, 'minute')}"
    return (
        f"{counted(config.max_train_steps, 'step')} of {counted(batch, 'image')} per process: {seen:,} images, "
        f"{seen / images:,.1f} epochs{limit}"
    )


def _speeds(run_dir: Path) -> tuple[float, int] | None:
    """Returns (images/s, finished steps) of an existing run; None for a new one."""
    from t2i.training.journal import read

    records = read(run_dir / "journal.jsonl")
    speeds = [record["images_per_second"] for record in records if record.get("images_per_second")]
    return (speeds[-1], records[-1]["step"]) if speeds else None


def _time(config: Any, speed: float, done: int) -> str:
    left = max(config.max_train_steps - done, 0)
    minutes = left * config.train_batch_size * config.gradient_accumulation_steps / speed / 60
    limited = f", the limit is {config.max_train_minutes:g}" if (config.max_train_minutes or minutes) < minutes else ""
    return (
        f"about {number(minutes, 2)} minutes for the {counted(left, 'step')} left, at {number(speed)} images/s{limited}"
    )


def _measure(config: Any, images: int) -> Iterator[tuple[str, str]]:
    """Yields parameters, time and memory of a new run, measured by a few real steps."""
    count = images_for(config.data.resolution, config.train_batch_size, images)
    with tempfile.TemporaryDirectory(prefix="t2i-dry-run-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(to_yaml(config), "utf-8")
        measurement = measured(config.family, str(file), [f"data.limit={count}"], cli.main)
    yield "device", measurement.device
    yield "parameters", measurement.parameters
    how = f"measured: at most {STEPS} steps and {60 * MOST_MINUTES:.0f} s here, on {counted(count, 'image')}"
    if measurement.images_per_second:
        time = _time(config, measurement.images_per_second / config.mean_cost, 0)
        yield "time", f"{time} ({how}; without validation and preparation)"
    else:
        yield "time", f"more than {60 * MOST_MINUTES:.0f} s for four steps ({how})"
    yield "memory", f"{number(measurement.memory / GB, 2)} GB at the peak of these steps"
