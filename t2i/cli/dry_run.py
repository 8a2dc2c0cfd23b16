"""`t2i train --dry-run`: opens data, encoder and tokenizer as the run would, and tells sizes, steps, time and memory.

Time and memory of a new run are measured by a few of its steps in a temporary folder; it leaves nothing.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2i import cli
from t2i.cli.fit.probe import MOST_MINUTES, STEPS, images_for, measured
from t2i.config.load import to_yaml
from t2i.data import NO_CAPTION
from t2i.data.mixture import open_training
from t2i.families import FAMILIES
from t2i.names import counted

GB = 1e9


def describe(config: Any, run_dir: Path) -> Iterator[tuple[str, str]]:
    """(what, its description) of all that the run would read, and of its length.

    Raises:
        InputError: the data, the text encoder or the tokenizer does not exist or cannot be read.
    """
    data = config.data
    bare = FAMILIES[config.family].tokenizer is not None
    train = open_training(data, replay=getattr(config, "replayed", None), bare=bare)
    captions = [caption for options in train.captions for caption in options if caption != NO_CAPTION]
    side = data.resolution
    yield (
        "data",
        f"{data.address}: {counted(len(train), 'image')} with {counted(len(captions), 'caption')}, {side} x {side}",
    )
    if getattr(config, "text", None) is not None:  # of a dual encoder, where it is frozen
        yield "text", _text(config.text, captions)
    if hasattr(config, "tokenizer"):
        yield "tokenizer", _tokenizer(config.tokenizer.path, data.resolution)
    yield "training", _length(config, len(train))
    yield "checkpoints", f"every {counted(config.checkpointing_steps, 'step')}, in {run_dir}"
    if speeds := _speeds(run_dir):
        yield "time", _time(config, *speeds)
        return
    yield from _measure(config, len(train))


def _text(config: Any, captions: list[str]) -> str:
    from t2i.text import fit_encoder

    if config.path is None and config.encoder != "aligned":
        return f"{config.encoder}, fitted on the training captions"
    encoder = fit_encoder(config, captions)
    place = config.path or "the encoder of the shipped models"
    return f"{config.encoder} ({place}), {counted(encoder.max_tokens, 'token')} of width {encoder.token_dim}"


def _tokenizer(path: str, resolution: int) -> str:
    from t2i.families import load_tokenizer

    found = load_tokenizer(Path(path))
    size = "" if found.resolution == resolution else f"; made for {found.resolution} pixels, the data has {resolution}"
    return (
        f"{path}: {found.grid * found.grid * found.codebooks:,} codes an image, each of {found.codebook_size:,}{size}"
    )


def _length(config: Any, images: int) -> str:
    at_once = config.train_batch_size * config.gradient_accumulation_steps
    seen = config.max_train_steps * at_once
    limit = "" if config.max_train_minutes is None else f", at most {config.max_train_minutes:g} minutes"
    return (
        f"{counted(config.max_train_steps, 'step')} of {counted(at_once, 'image')} a process: {seen:,} images, "
        f"{seen / images:,.1f} epochs{limit}"
    )


def _speeds(run_dir: Path) -> tuple[float, int] | None:
    """(images/s, steps done) of a run that is there; None of a new one."""
    from t2i.training.journal import read

    records = read(run_dir / "journal.jsonl")
    speeds = [record["images_per_second"] for record in records if record.get("images_per_second")]
    return (speeds[-1], records[-1]["step"]) if speeds else None


def _time(config: Any, speed: float, done: int) -> str:
    left = max(config.max_train_steps - done, 0)
    minutes = left * config.train_batch_size * config.gradient_accumulation_steps / speed / 60
    limited = f", the limit is {config.max_train_minutes:g}" if (config.max_train_minutes or minutes) < minutes else ""
    return f"about {minutes:,.2g} minutes for the {counted(left, 'step')} left, at {speed:.3g} images/s{limited}"


def _measure(config: Any, images: int) -> Iterator[tuple[str, str]]:
    """Parameters, time and memory of a new run, by a few real steps of it."""
    read = images_for(config.data.resolution, config.train_batch_size, images)
    with tempfile.TemporaryDirectory(prefix="t2i-dry-run-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(to_yaml(config), "utf-8")
        found = measured(config.family, str(file), [f"data.limit={read}"], cli.main)
    yield "device", found.device
    yield "parameters", found.parameters
    how = f"measured: at most {STEPS} steps and {60 * MOST_MINUTES:.0f} s here, on {counted(read, 'image')}"
    if found.images_per_second:
        yield "time", f"{_time(config, found.images_per_second, 0)} ({how}; validations and preparations not counted)"
    else:
        yield "time", f"more than {60 * MOST_MINUTES:.0f} s for four steps ({how})"
    yield "memory", f"{found.memory / GB:.2g} GB at the peak of these steps"
