"""Names of splits, and the division of images among them."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i import seeding
from t2i.errors import InputError
from t2i.names import nearest, some

SPLITS = ("train", "val", "test", "heldout")
SPLIT_FOLDERS = {name: name for name in SPLITS} | {"valid": "val", "validation": "val"}
SPLIT_COLUMNS = ("split", "subset", "partition", "set")  # in lower case
SEEDED_SHARES = {"train": 0.90, "val": 0.05, "test": 0.05}
VAL_SHARES = {"train": 0.95, "val": 0.05}  # of train, if a data set lists its splits and has none for validation
SEEDED, NONE = -2, -1  # take the place of a split's index in SPLITS: assigned by id; in no split


class PublishedOptions(NamedTuple):
    """Options of data with published splits."""

    split: str | None = None  # the published split that is read as `train`; None: as published


def split_column(names: Iterable[str]) -> str:
    """Returns the column that may name the split of each row, or ""; whether it does depends on its words."""
    plain = {name.strip().lower(): name for name in reversed(list(names))}
    return next((plain[name] for name in SPLIT_COLUMNS if name in plain), "")


def split_in(value: Any) -> str:
    """Returns a value of the column of splits as written; "" if it is empty or no word and no whole number."""
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def unknown_splits(named: Collection[str], address: str) -> str:
    """Returns a warning about a column of splits without a known split; "" if it has one, or nothing."""
    if not named or any(name.lower() in SPLIT_FOLDERS for name in named):
        return ""
    return (
        f"data {address}: its column of splits has {some(sorted(named))}, none of which is train, val, test or heldout, so it is "
        "not used and images of a test set may be in train; write these names there, or remove the column"
    )


def fallbacks(split: str) -> tuple[str, ...]:
    """Returns the splits of which the first that exists is read as `split`."""
    return ("heldout", "test", "val") if split == "heldout" else (split,)


def assign_splits(ids: Sequence[str], seed: int, shares: Mapping[str, float] = SEEDED_SHARES) -> list[str]:
    """Returns a split for each id, a function of the id and the seed alone."""
    return [SPLITS[k] for k in _assign(seeding.ids_of(ids), seed, shares).tolist()]


def _assign(keys_N: NDArray[np.int64], seed: int, shares: Mapping[str, float]) -> NDArray[np.int64]:
    draws = seeding.uniform(seed, "split", keys_N, 1)[:, 0]
    splits = np.array([SPLITS.index(name) for name in shares])
    return splits[np.searchsorted(np.cumsum(list(shares.values()))[:-1], draws, side="right")]


def divide(
    splits_N: NDArray[np.int64], keys_of: Callable[[NDArray[np.int64]], NDArray[np.int64]], seed: int, needs_val: bool
) -> NDArray[np.int64]:
    """Returns the index in SPLITS of the split of each image, or NONE.

    Args:
        splits_N: the same, with SEEDED for images that are assigned by key.
        keys_of: returns the keys (`seeding.ids_of`) of the images at these positions.
        needs_val: assign a share of train to val.
    """
    assigned, shares = np.flatnonzero(splits_N == SEEDED), SEEDED_SHARES
    if needs_val:
        assigned, shares = np.flatnonzero(splits_N == SPLITS.index("train")), VAL_SHARES
    splits_N = splits_N.astype(np.int64)
    if len(assigned):
        splits_N[assigned] = _assign(keys_of(assigned), seed, shares)
    return splits_N


def split_folder(name: str) -> str | None:
    """Returns the split whose folder at the top holds this id, or None."""
    folder, slash, _ = name.partition("/")
    return SPLIT_FOLDERS.get(folder.lower()) if slash else None


def split_of_parts(
    parts: Mapping[str, str] | None, roles: Mapping[str, tuple[str, ...]], train: str | None, address: str
) -> dict[str, str | None] | None:
    """Returns id -> train, val, test or None, from id -> published name; None if nothing is published.

    Args:
        roles: train, val, test -> their published names.
        train: the published name of the only split that is read as `train`; None: those of `roles`.

    Raises:
        InputError: `train` is not among the published names.
    """
    if train is not None:
        published = sorted(set((parts or {}).values()))
        if train not in published:
            known = f"there are: {', '.join(published)}" if published else "the data does not list splits"
            raise InputError(f"data {address}: no split {train!r}{nearest(train, published)}; {known}")
        roles = {"train": (train,)} | {
            role: tuple(name for name in names if name != train) for role, names in roles.items() if role != "train"
        }
    role_of = {name: role for role, names in roles.items() for name in names}
    return None if parts is None else {name: role_of.get(part) for name, part in parts.items()}


def split_of_name(name: str) -> str | None:
    """Returns the split that a file's name or folder mentions: `train/00000.tar`, `data/validation-00000-of-00002.parquet`."""
    words = re.split(r"[-_./\\]", name.lower())
    return next((SPLIT_FOLDERS[word] for word in reversed(words) if word in SPLIT_FOLDERS), None)
