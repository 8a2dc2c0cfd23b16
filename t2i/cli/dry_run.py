"""`t2i train --dry-run`: opens data, encoder and tokenizer as the run would, and tells sizes and steps; trains nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2i.data import NO_CAPTION
from t2i.data.mixture import open_training
from t2i.families import FAMILIES
from t2i.names import counted


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
    if hasattr(config, "text"):
        yield "text", _text(config.text, captions)
    if hasattr(config, "tokenizer"):
        yield "tokenizer", _tokenizer(config.tokenizer.path, data.resolution)
    yield "training", _length(config, len(train))
    yield "checkpoints", f"every {counted(config.checkpointing_steps, 'step')}, in {run_dir}"
    yield "time", _time(config, run_dir)


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


def _time(config: Any, run_dir: Path) -> str:
    """From the speed that the run itself had so far."""
    from t2i.training.journal import read

    records = read(run_dir / "journal.jsonl")
    speeds = [record["images_per_second"] for record in records if record.get("images_per_second")]
    if not speeds:
        return "known after the first steps; --set max_train_minutes=30 sets a limit"
    left = config.max_train_steps - records[-1]["step"]
    seconds = max(left, 0) * config.train_batch_size * config.gradient_accumulation_steps / speeds[-1]
    return (
        f"about {seconds / 60:,.0f} minutes for the {counted(max(left, 0), 'step')} left, at {speeds[-1]:.3g} images/s"
    )
