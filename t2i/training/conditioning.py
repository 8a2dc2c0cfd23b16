"""The frozen networks that a run keeps copies of, and the features of all its captions."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from t2i.align.linear import Pairing
from t2i.config.towers import GivenImageConfig
from t2i.data import NO_CAPTION, Dataset
from t2i.data.loader import choose_captions
from t2i.extractors import ImageEncoder, load_image_encoder, open_image_encoder
from t2i.files import read_regular, write_text
from t2i.text import TextConfig, TextEncoder, fit_encoder, load_encoder
from t2i.training.progress import now_and_then
from t2i.training.run import Run
from t2i.training.text_features import CachedText, encode_cached

IMAGES_AT_ONCE = 1000


class Captions(NamedTuple):
    """All training captions, flat, with their features."""

    text: CachedText
    first: np.ndarray  # index of the first caption of each image
    same: Tensor  # one number for each different caption
    flat: list[str]
    said: np.ndarray  # indices of those that are no NO_CAPTION

    def chosen(self, dataset: Dataset, rows: np.ndarray, sample_ids: np.ndarray, seed: int) -> np.ndarray:
        """Index of the caption that each sample trains on: one of its image's, a function of (seed, sample id)."""
        return np.array([self.first[row] + k for row, k in choose_captions(dataset, rows, sample_ids, seed)])

    def are_said(self, index: np.ndarray) -> np.ndarray:
        """Returns False where the caption of that index is NO_CAPTION."""
        return np.array([self.flat[i] != NO_CAPTION for i in index.tolist()])


class Frozen(Protocol):
    """A frozen network with a digest of all that decides what it computes."""

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
    """Returns the frozen network that the run keeps in its folder `name`: made and saved at the start, read on resume.

    Args:
        path: the config's `name.path`. When it is spelled otherwise than at the start, the network there must be the same.

    Raises:
        InputError: on every rank, when it is not the network that the run was started with; nothing is overwritten.
    """
    folder, key = run.directory / name, f"{name}_digest"
    what = {"text": "text encoder"}.get(name, name)

    def prepare() -> F:
        if run.is_new:
            shutil.rmtree(folder, ignore_errors=True)
        kept = load(folder) if folder.exists() else None
        if kept is not None:
            run.identity.refuse_other(key, kept.digest(), f"{what} in {folder}")
            if run.identity.was_started_with(f"{name}.path", path):
                return kept
        made = make()
        run.identity.refuse_other(key, made.digest(), what)
        if kept is None:
            save(made, folder)
        return made

    mine = run.ranks.on_main(prepare)
    part = run.ranks.each(lambda: load(folder) if mine is None else mine)
    run.identity.keep(key, part.digest(), what)
    return part


def own_vocabulary(run: Run, name: str, fit: Callable[[], str]) -> str:
    """Returns the text of the run's own tokenizer in the file `name`: fitted at the start, and the same ever after.

    Raises:
        InputError: on every rank, when it is not the one that the run was started with; nothing is overwritten.
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
    """Returns the run's own encoder: the one saved in it, or a new one that is saved now."""
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


def pooled_pairs(text: TextEncoder, image: ImageEncoder, train: Dataset, run: Run, seed: int) -> Pairing:
    """Returns the pooled features of all images and of one caption of each, on every rank."""
    rows = np.arange(len(train))
    said = [train.captions[row][k] for row, k in choose_captions(train, rows, rows, seed)]
    number = {caption: k for k, caption in enumerate(dict.fromkeys(said))}
    told = now_and_then(run.say, "encoding images")

    def images() -> Tensor:
        parts = []
        for start in range(0, len(train), IMAGES_AT_ONCE):
            parts.append(image.encode(train.images(range(start, min(start + IMAGES_AT_ONCE, len(train))))).pooled_BP)
            told(min(start + IMAGES_AT_ONCE, len(train)), len(train))
        return torch.cat(parts)

    image_NQ = run.on_main(images).double().numpy()
    text_NP = encode_cached(text, said, tokens=False, ranks=run.ranks).pooled_BP.double().numpy()
    return Pairing(text_NP, image_NQ, np.array([number[caption] for caption in said]))


def prepare_captions(encoder: TextEncoder, train: Dataset, run: Run, tokens: bool) -> Captions:
    """Encodes every training caption once; the features come from disk the next time.

    Args:
        tokens: whether token states are needed beside the pooled vector.
    """
    flat = [caption for options in train.captions for caption in options]
    told = now_and_then(run.say, "encoding captions")
    text = encode_cached(encoder, flat, tokens=tokens, ranks=run.ranks, on_progress=told)
    run.say(f"features of captions: {text.hits:,} from the cache, {text.misses:,} encoded now")
    number = {caption: i for i, caption in enumerate(dict.fromkeys(flat))}
    first = np.cumsum([0, *(len(options) for options in train.captions)])[:-1]
    said = np.array([i for i, caption in enumerate(flat) if caption != NO_CAPTION], dtype=np.int64)
    return Captions(text, first, torch.tensor([number[caption] for caption in flat]), flat, said)
