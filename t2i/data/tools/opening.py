"""Opens all splits of an address."""

from t2i.data import Dataset, View, open_dataset
from t2i.data.encoded import EncodedImages
from t2i.data.splits import SPLITS
from t2i.errors import InputError


def try_splits(address: str, view: View) -> tuple[dict[str, Dataset], dict[str, InputError]]:
    """Returns the splits of an address that exist, and the errors of the others."""
    datasets: dict[str, Dataset] = {}
    errors: dict[str, InputError] = {}
    for split in SPLITS:
        try:
            dataset = open_dataset(address, split, view)
        except InputError as error:
            errors[split] = error
            continue
        if dataset.split == split:  # `heldout` may be read from another split
            datasets[split] = dataset
    return datasets, errors


def every_split(address: str, view: View) -> dict[str, Dataset]:
    """Returns the splits of an address that exist; raises InputError if there is none."""
    datasets, errors = try_splits(address, view)
    if not datasets:
        raise errors["train"]
    return datasets


def open_splits(address: str, view: View = View()) -> dict[str, EncodedImages]:
    """Returns the splits of an address that exist.

    Raises:
        InputError: there is none, or its images are rendered and thus have no files.
    """
    splits: dict[str, EncodedImages] = {}
    for split, dataset in every_split(address, view).items():
        if not isinstance(dataset, EncodedImages):
            raise InputError(
                f"data {address} is rendered and has no files; write it with `t2i data export {address} OUT`"
            )
        splits[split] = dataset
    return splits
