"""Refuses settings, and parts of the model trained on the same images, with which the privacy account would not hold."""

from collections.abc import Mapping

import numpy as np

from t2i.config.training import PrivacyConfig
from t2i.data import Dataset
from t2i.data.record import is_rendered, note, read_record
from t2i.errors import InputError
from t2i.names import counted
from t2i.trained import RECORD
from t2i.weights import find


def refuse_seen(train: Dataset, parts: Mapping[str, str | None]) -> None:
    """Refuses frozen parts that were trained on some of the training images, or that have no record of their training data.

    Args:
        parts: config key -> the run or saved model that the part comes from; None: the encoder of the shipped models.

    Raises:
        InputError: the message names the part and a replacement.
    """
    own = note(train, train.fingerprint())
    for key, place in parts.items():
        if place is None:
            if is_rendered(train.address):
                raise InputError(
                    f"{key}: the encoder of the shipped models was trained on rendered shapes, so privacy of "
                    f"{train.address} would not hold; take a published encoder, as text.encoder=clip"
                )
            continue
        folder = find(place)
        record = read_record(folder / RECORD) or read_record(folder.parent / RECORD)
        if record is None:
            raise InputError(
                f"{key} {place} has no record of its training data ({RECORD} is missing), but privacy needs one that was not "
                "trained on these images; name a run of t2i train on other data"
            )
        shared = int(np.isin(own.pixels, record.pixels).sum())
        if shared:
            raise InputError(
                f"{key} {place} was trained on {shared:,} of the {counted(len(train), 'image')} of {train.address} without "
                "noise, so privacy would not hold; train it on other data"
            )


def refuse_unaccountable(config: PrivacyConfig, images: int, per_step: int, processes: int) -> None:
    """Raises InputError for several processes, for a step larger than the data, and for a delta of 1 / images or more."""
    if processes > 1:
        raise InputError(f"private training runs on one process, and there are {processes}; start it without torchrun")
    if per_step > images:
        raise InputError(
            f"a step of {counted(per_step, 'image')} is larger than the data, {counted(images, 'image')}; lower train_batch_size"
        )
    if config.delta >= 1 / images:
        raise InputError(
            f"privacy.delta {config.delta:g} is not below 1 / {images:,} images, so it would allow the publication of an image; "
            f"set privacy.delta={0.1 / images:.1g} or less"
        )
