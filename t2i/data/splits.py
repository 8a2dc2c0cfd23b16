"""Names of splits, and the division of images among them."""

from collections.abc import Mapping, Sequence

import numpy as np

from t2i import seeding
from t2i.errors import InputError
from t2i.names import nearest

SPLITS = ("train", "val", "test", "heldout")
SPLIT_FOLDERS = {name: name for name in SPLITS} | {"valid": "val", "validation": "val"}
SEEDED_SHARES = {"train": 0.90, "val": 0.05, "test": 0.05}
VAL_SHARE = 0.05  # share of train, if a data set lists its splits and has none for validation


def assign_splits(ids: Sequence[str], seed: int, shares: Mapping[str, float] = SEEDED_SHARES) -> list[str]:
    """Returns a split for each id, a function of the id and the seed alone."""
    draws = seeding.uniform(seed, "split", seeding.ids_of(ids), 1)[:, 0]
    names = list(shares)
    return [names[k] for k in np.searchsorted(np.cumsum(list(shares.values()))[:-1], draws, side="right")]


def split_folder(name: str) -> str | None:
    """Returns the split whose folder at the top holds this id, or None."""
    folder, slash, _ = name.partition("/")
    return SPLIT_FOLDERS.get(folder.lower()) if slash else None


def split_of_parts(
    parts: Mapping[str, str] | None, roles: Mapping[str, tuple[str, ...]], train: str | None, address: str
) -> dict[str, str | None] | None:
    """Returns id -> train, val, test or None, from id -> published name.

    Raises:
        InputError: `train` is not among the published names.
    """
    if parts is None:
        if train is not None:
            raise InputError(f"data {address}: no split {train!r}: the data does not list splits")
        return None
    if train is not None:
        there = sorted(set(parts.values()))
        if train not in there:
            raise InputError(
                f"data {address}: no split {train!r}{nearest(train, there)}; there are: {', '.join(there)}"
            )
        roles = {"train": (train,)} | {
            role: tuple(name for name in names if name != train) for role, names in roles.items() if role != "train"
        }
    role_of = {name: role for role, names in roles.items() for name in names}
    return {name: role_of.get(part) for name, part in parts.items()}


def split_of_name(name: str) -> str | None:
    """Returns the split that a file's name or folder mentions: `train/00000.tar`, `data/validation-00000-of-00002.parquet`."""
    for word in reversed(
        name.lower().replace("\\", "/").replace("_", "-").replace(".", "-").replace("/", "-").split("-")
    ):
        if word in SPLIT_FOLDERS:
            return SPLIT_FOLDERS[word]
    return None
