"""What the programs that train on captions share: the run's frozen text encoder, and the features of all its captions."""

import shutil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from t2i.data import Dataset
from t2i.data.loader import choose_captions
from t2i.text import TextConfig, TextEncoder, fit_encoder, load_encoder
from t2i.training.run import Run, now_and_then
from t2i.training.text_features import CachedText, encode_cached


class Captions(NamedTuple):
    """All training captions, flat, with their features."""

    text: CachedText
    first: np.ndarray  # index of the first caption of each picture
    same: Tensor  # one number for each different caption
    flat: list[str]

    def chosen(self, dataset: Dataset, rows: np.ndarray, sample_ids: np.ndarray, seed: int) -> np.ndarray:
        """Index of the caption that each sample trains on: one of its picture's, a function of (seed, sample id)."""
        return np.array([self.first[row] + k for row, k in choose_captions(dataset, rows, sample_ids, seed)])


def prepare_text(config: TextConfig, train: Dataset, run: Run) -> TextEncoder:
    """The run's own encoder: the one saved in it, or a new one that is saved now."""
    folder = run.directory / "text"
    with run.accelerator.main_process_first():
        if (folder / "encoder.json").exists() and not (run.is_new and run.is_main):
            return load_encoder(folder)
        encoder = fit_encoder(config, [caption for options in train.captions for caption in options])
        if run.is_main:
            shutil.rmtree(folder, ignore_errors=True)
            encoder.save(folder)
    return encoder


def prepare_captions(encoder: TextEncoder, train: Dataset, run: Run, tokens: bool) -> Captions:
    """Encodes every training caption once; the features come from disk the next time.

    Args:
        tokens: whether token states are needed beside the pooled vector.
    """
    flat = [caption for options in train.captions for caption in options]
    with run.accelerator.main_process_first():
        text = encode_cached(encoder, flat, tokens=tokens, on_progress=now_and_then(run, "encoding captions"))
    run.say(f"features of captions: {text.hits:,} from the cache, {text.misses:,} encoded now")
    number = {caption: i for i, caption in enumerate(dict.fromkeys(flat))}
    first = np.cumsum([0, *(len(options) for options in train.captions)])[:-1]
    return Captions(text, first, torch.tensor([number[caption] for caption in flat]), flat)
