"""Prepares frozen networks, which a run keeps copies of, and the text features of all training captions."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from t2i.config.towers import GivenImageConfig
from t2i.data import NO_CAPTION, Dataset
from t2i.data.loader import choose_captions
from t2i.extractors import ImageEncoder, load_image_encoder, open_image_encoder
from t2i.files import read_regular, write_text
from t2i.text import TextConfig, TextEncoder, fit_encoder, load_encoder
from t2i.training.progress import report_progress
from t2i.training.run import Run
from t2i.training.text_features import CachedText, encode_cached

IMAGES_AT_ONCE = 1000


class Captions(NamedTuple):
    """All training captions in one list, with their features."""

    text: CachedText
    first: np.ndarray  # index of the first caption of each image
    same: Tensor  # a number per caption, equal for equal captions
    flat: list[str]
    with_text: np.ndarray  # indices of the captions other than NO_CAPTION

    def chosen(self, dataset: Dataset, rows: np.ndarray, sample_ids: np.ndarray, seed: int) -> np.ndarray:
        """Returns the index of the caption that each sample trains on, chosen by (seed, sample id)."""
        return np.array([self.first[row] + k for row, k in choose_captions(dataset, rows, sample_ids, seed)])

    def have_text(self, index: np.ndarray) -> np.ndarray:
        """Returns False for each index whose caption is NO_CAPTION, else True."""
        return np.array([self.flat[i] != NO_CAPTION for i in index.tolist()])


class Frozen(Protocol):
    """A frozen network with a digest of everything that its outputs depend on."""

    def digest(self) -> str: ...


F = TypeVar("F", bound=Frozen)


def own_copy(
    run: Run,
    name: str,
    path: str | None,
    make: Callable[[], F],
    save: Callable[[F, Path], None],
    load: Callable[[Path], F],
) -> F:
    """Returns the frozen network in the run's folder `name`, which is saved when the run starts and read on resume.

    Args:
        path: the config's `name.path`. If it has changed since the start, it must still lead to the same network.

    Raises:
        InputError: on every rank, if the network differs from the one that the run started with; nothing is overwritten.
    """
    folder, key = run.directory / name, f"{name}_digest"
    what = {"text": "text encoder"}.get(name, name)

    def prepare() -> F:
        if run.is_new:
            shutil.rmtree(folder, ignore_errors=True)
        saved = load(folder) if folder.exists() else None
        if saved is not None:
            run.identity.refuse_other(key, saved.digest(), f"{what} in {folder}")
            if run.identity.was_started_with(f"{name}.path", path):
                return saved
        new = make()
        run.identity.refuse_other(key, new.digest(), what)
        if saved is None:
            save(new, folder)
        return new

    on_main = run.ranks.on_main(prepare)
    network = run.ranks.each(lambda: load(folder) if on_main is None else on_main)
    run.identity.keep(key, network.digest(), what)
    return network


def own_vocabulary(run: Run, name: str, fit: Callable[[], str]) -> str:
    """Returns the run's tokenizer as JSON, from its file `name`, which is written when the run starts and read on resume.

    Raises:
        InputError: on every rank, if it differs from the one that the run started with; nothing is overwritten.
    """
    path, key = run.directory / name, "vocabulary_digest"

    def prepare() -> str:
        if not run.is_new and path.exists():
            return read_regular(path).decode(errors="replace")
        fitted = fit()
        run.identity.refuse_other(key, hashlib.sha256(fitted.encode()).hexdigest(), "vocabulary")
        write_text(path, fitted)
        return fitted

    text = run.on_main(prepare)
    run.identity.keep(key, hashlib.sha256(text.encode()).hexdigest(), f"vocabulary in {path}")
    return text


def prepare_text(config: TextConfig, train: Dataset, run: Run) -> TextEncoder:
    """Returns the run's copy of the text encoder, which is made and saved when the run starts."""
    flat = [caption for options in train.captions for caption in options if caption != NO_CAPTION]
    return own_copy(
        run, "text", config.path, lambda: fit_encoder(config, flat), lambda e, folder: e.save(folder), load_encoder
    )


def prepare_images(config: GivenImageConfig, run: Run) -> ImageEncoder:
    """Returns the run's own copy of the image tower that a config names."""
    name, path = config.encoder, config.path
    return own_copy(
        run, "image", path, lambda: open_image_encoder(name, path), lambda e, folder: e.save(folder), load_image_encoder
    )


def pooled_pairs(
    text: TextEncoder, image: ImageEncoder, train: Dataset, run: Run, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, on every rank, pooled features of one caption of each image [N, P] and of all images [N, Q], float64, and numbers
    [N] that equal captions share."""
    rows = np.arange(len(train))
    captions = [train.captions[row][k] for row, k in choose_captions(train, rows, rows, seed)]
    number = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
    progress = report_progress(run.say, "encoding images")

    def images() -> Tensor:
        parts = []
        for start in range(0, len(train), IMAGES_AT_ONCE):
            parts.append(image.encode(train.images(range(start, min(start + IMAGES_AT_ONCE, len(train))))).pooled_BP)
            progress(min(start + IMAGES_AT_ONCE, len(train)), len(train))
        return torch.cat(parts)

    image_NQ = run.on_main(images).double().numpy()
    text_NP = encode_cached(text, captions, tokens=False, ranks=run.ranks).pooled_BP.double().numpy()
    return text_NP, image_NQ, np.array([number[caption] for caption in captions])


def prepare_captions(encoder: TextEncoder, train: Dataset, run: Run, tokens: bool) -> Captions:
    """Encodes every training caption; features that are in the cache are read from disk.

    Args:
        tokens: True if token states are needed besides the pooled vector.
    """
    flat = [caption for options in train.captions for caption in options]
    progress = report_progress(run.say, "encoding captions")
    text = encode_cached(encoder, flat, tokens=tokens, ranks=run.ranks, on_progress=progress)
    run.say(f"features of captions: {text.hits:,} from the cache, {text.misses:,} encoded now")
    number = {caption: i for i, caption in enumerate(dict.fromkeys(flat))}
    first = np.cumsum([0, *(len(options) for options in train.captions)])[:-1]
    with_text = np.array([i for i, caption in enumerate(flat) if caption != NO_CAPTION], dtype=np.int64)
    return Captions(text, first, torch.tensor([number[caption] for caption in flat]), flat, with_text)
