"""Labels of images: facts of rendered scenes, classes of a data set, or a column `label`."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.data import Dataset
from t2i.data.tools.classes import Values
from t2i.errors import InputError
from t2i.names import counted, nearest, some


class Labelled(NamedTuple):
    """One label of the images of a split.

    Attributes:
        classes: names, sorted.
        has_NC: True if image n has class c.
        is_single: True if every image has exactly one class.
    """

    classes: tuple[str, ...]
    has_NC: NDArray[np.bool_]
    is_single: bool


def values_of(dataset: Dataset, name: str) -> Values:
    """Returns the classes of each image, in the order of the rows.

    Raises:
        InputError: the data does not have the label; the message lists its labels.
    """
    labels: Mapping[str, Callable[[], Values]] = getattr(dataset, "labels", None) or {}
    if not labels:
        raise InputError(
            f"data {dataset.address} has no labels; use shapes-1..3, cub:, flowers:, mirflickr:, a folder with class folders, "
            "metadata or a table with a column `label`, or shards with .cls files"
        )
    if name not in labels:
        raise InputError(
            f"data {dataset.address} has no label {name!r}{nearest(name, labels)}; it has {some(list(labels), 12)}"
        )
    return labels[name]()


def labelled(values: Values, classes: Sequence[str]) -> Labelled:
    """Returns a table of the classes of each image; other classes than `classes` are ignored."""
    column = {one: k for k, one in enumerate(classes)}
    has_NC = np.zeros((len(values), len(column)), dtype=bool)
    for row, own in enumerate(values):
        for one in own or ():
            if one in column:
                has_NC[row, column[one]] = True
    return Labelled(tuple(classes), has_NC, all(own is not None and len(own) == 1 for own in values))


def classes_of(values: Values, where: str) -> tuple[str, ...]:
    """Returns the classes of the images, sorted.

    Raises:
        InputError: there are fewer than two classes, or one of them has only one image.
    """
    counts = Counter(one for own in values for one in own or ())
    if len(counts) < 2:
        raise InputError(f"{where} has {counted(len(counts), 'class')}; at least two are needed")
    alone = sorted(one for one, count in counts.items() if count < 2)
    if alone:
        raise InputError(
            f"{where}: only one image has the class {some(alone, 3)}; add images, or remove it from the data"
        )
    return tuple(sorted(counts))


def class_numbers(dataset: Dataset, name: str) -> NDArray[np.int64]:
    """Returns a number for each image that is equal for images with the same set of classes.

    Raises:
        InputError: the data does not have the label, or there are fewer than two sets or one of a single image.
    """
    sets: Values = [(" and ".join(sorted(own or ())) or "none",) for own in values_of(dataset, name)]
    number = {one: k for k, one in enumerate(classes_of(sets, f"label {name} of {dataset.address}"))}
    return np.array([number[own[0]] for own in sets if own is not None])
