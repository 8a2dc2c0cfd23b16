"""Writes any `Dataset` as an image folder with metadata.jsonl: `t2i data export shapes-2 OUT --n 5000 --size 64`.

`open_folder` reads the same pixels from it, and so do the `datasets` library and other trainers.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from t2i.data import Dataset
from t2i.data.tools.classes import entries_of
from t2i.errors import InputError
from t2i.files import new_folder
from t2i.images import BrokenImage, save_png

_CHUNK = 256


def export(dataset: Dataset, out: Path) -> None:
    """Writes one split as `out/00000.png`, ... and `out/metadata.jsonl`; `out` appears when all is written.

    Raises:
        InputError: `out` is a file, is not empty or cannot be written, or an image of the data set is broken.
    """
    with _new_folder(out) as folder:
        _write(dataset, folder)


def export_splits(datasets: Mapping[str, Dataset], out: Path) -> None:
    """Writes each split into a subfolder, `out/train`, `out/val`, ...; raises the errors of `export`."""
    with _new_folder(out) as folder:
        for split, dataset in datasets.items():
            (folder / split).mkdir()
            _write(dataset, folder / split)


def _write(dataset: Dataset, folder: Path) -> None:
    digits = max(5, len(str(len(dataset) - 1)))
    rows, entries = list[str](), entries_of(dataset)
    for start in range(0, len(dataset), _CHUNK):
        indices = range(start, min(start + _CHUNK, len(dataset)))
        for i, image_HWC in zip(indices, dataset.images(indices), strict=True):
            name = f"{i:0{digits}d}.png"
            save_png(image_HWC, folder / name)
            rows.append(metadata_line(name, dataset.captions[i], entries[i]))
    (folder / "metadata.jsonl").write_text("".join(rows), "utf-8")


def metadata_line(name: str, captions: Sequence[str], more: Mapping[str, object]) -> str:
    """Returns the line of metadata.jsonl for an image, with its captions and further entries."""
    own = {"file_name": name, "text": captions[0] if len(captions) == 1 else list(captions)}
    return json.dumps(own | {**more, **own}, ensure_ascii=False) + "\n"


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    try:
        with new_folder(out) as folder:
            yield folder
    except BrokenImage as error:
        raise InputError(f"{error}; repair or remove it and export again") from error
