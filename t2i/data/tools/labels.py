"""Labels of images, whatever they come from: scene facts, classes of a data set, a column of a folder's metadata."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.data import Dataset
from t2i.errors import InputError
from t2i.names import nearest, some

Values = Sequence[
    tuple[str, ...] | None
]  # of each image the classes that it has, none or several too; None: nobody knows


class Labelled(NamedTuple):
    """One label of the images of a split.

    Attributes:
        classes: names, sorted.
        has_NC: True where an image has a class.
        is_single: every image has exactly one.
    """

    classes: tuple[str, ...]
    has_NC: NDArray[np.bool_]
    is_single: bool


def values_of(dataset: Dataset, name: str) -> Values:
    """Returns the classes of each image, in the order of the rows.

    Raises:
        InputError: the data has no such label; the message names those that it has.
    """
    there: Mapping[str, Callable[[], Values]] = getattr(dataset, "labels", None) or {}
    if not there:
        raise InputError(
            f"data {dataset.address} has no labels; give shapes-1..3, cub:, flowers:, mirflickr:, or a folder with class "
            "folders or with a column `label` in its metadata"
        )
    if name not in there:
        raise InputError(
            f"data {dataset.address} has no label {name!r}{nearest(name, there)}; it has {some(list(there), 12)}"
        )
    return there[name]()


def labelled(values: Values, classes: Sequence[str]) -> Labelled:
    """Returns a table of the classes of each image; classes that are not among `classes` are left out."""
    place = {one: k for k, one in enumerate(classes)}
    has_NC = np.zeros((len(values), len(place)), dtype=bool)
    for row, own in enumerate(values):
        for one in own or ():
            if one in place:
                has_NC[row, place[one]] = True
    return Labelled(tuple(classes), has_NC, all(own is not None and len(own) == 1 for own in values))


def classes_of(values: Values, where: str) -> tuple[str, ...]:
    """Returns the classes that images have, sorted.

    Raises:
        InputError: there are fewer than two, or one of a single image, which nobody can learn and be tested on.
    """
    counts = Counter(one for own in values for one in own or ())
    if len(counts) < 2:
        raise InputError(f"{where} has {len(counts)} class{'es' * (len(counts) != 1)}; there must be two to tell apart")
    alone = sorted(one for one, count in counts.items() if count < 2)
    if alone:
        raise InputError(
            f"{where}: one image alone has the class {some(alone, 3)}; give it more images, or leave it out of the data"
        )
    return tuple(sorted(counts))


def class_numbers(dataset: Dataset, name: str) -> NDArray[np.int64]:
    """Returns a number for each image by its classes together, for a basis that tells them apart.

    Raises:
        InputError: no such label, fewer than two classes, or one that a single image has.
    """
    together: Values = [(" and ".join(sorted(own or ())) or "none",) for own in values_of(dataset, name)]
    number = {one: k for k, one in enumerate(classes_of(together, f"label {name} of {dataset.address}"))}
    return np.array([number[own[0]] for own in together if own is not None])
