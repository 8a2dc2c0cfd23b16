"""What the programs share that train on a frozen tokenizer's codes: the run's copy of it, and the codes of all images."""

from pathlib import Path

from t2i.data import Dataset
from t2i.errors import InputError
from t2i.families import ImageTokenizer, load_tokenizer, save_tokenizer
from t2i.training.codes import CachedCodes, encode_codes
from t2i.training.conditioning import own_copy
from t2i.training.run import Run, now_and_then


def prepare_tokenizer(path: str, resolution: int, run: Run) -> ImageTokenizer:
    """Returns the run's own copy of the tokenizer at `path`, made when the run starts.

    Raises:
        InputError: it is none, or codes images of another size than `resolution`.
    """
    tokenizer = own_copy(run, "tokenizer", path, lambda: load_tokenizer(Path(path)), save_tokenizer, load_tokenizer)
    if tokenizer.resolution != resolution:
        raise InputError(
            f"data.resolution is {resolution}, but the tokenizer {path} codes images of "
            f"{tokenizer.resolution} px; set data.resolution={tokenizer.resolution}, or train another tokenizer"
        )
    tokenizer.to(run.device)
    return tokenizer


def prepare_codes(tokenizer: ImageTokenizer, dataset: Dataset, mirrored: bool, run: Run) -> CachedCodes:
    """Returns the codes of all images, from the cache or encoded now by all processes together."""
    codes = encode_codes(
        tokenizer, dataset, mirrored, rank=run.process_index, processes=run.num_processes,
        wait=run.accelerator.wait_for_everyone, on_progress=now_and_then(run, f"encoding images ({dataset.split})"),
    )  # fmt: skip
    for entry in codes.broken:
        run.quarantine(entry)
    run.say(f"codes of {dataset.split}: {codes.hits:,} images from the cache, {codes.misses:,} encoded now")
    return codes
