"""Writes the record of a run's training data (`t2i.data.record`) into the run directory, when training starts."""

import warnings
from collections.abc import Callable, Iterable
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.data import DataConfig, Dataset
from t2i.data.mixture import members_of
from t2i.data.record import note, read_record, write_record
from t2i.families import Source
from t2i.trained import RECORD
from t2i.training.progress import report_progress
from t2i.weights import find

if TYPE_CHECKING:
    from t2i.training.run import Run


def remember(
    run: "Run",
    train: Dataset,
    data: DataConfig,
    built_on: Iterable[str | None] = (),
    start: Source | None = None,
) -> None:
    """Records the training data in the run's directory, unless it is recorded already. Call it first, on every rank.

    A resumed run whose data has changed is refused here.

    Args:
        data: the config that `train` was opened with.
        built_on: paths of the models that this run uses (tokenizer, text encoder, guide); if they have a record, the data that
            they were trained on is added. Paths without a record, and None, are ignored.
        start: the source of the run's starting weights, whose training data is added as well.
    """
    folders = [find(place) for place in built_on if place is not None]
    # the record of a saved model is in the folder above its tokenizer and text encoder
    paths = [path for folder in folders for path in (folder / RECORD, folder.parent / RECORD)]
    if start is not None:
        paths.append(start.place / RECORD)
        if run.is_main and not paths[-1].exists():
            warnings.warn(
                f"init_from {start.address} has no record of its training data ({RECORD} is missing), so this run may be scored "
                "on images that its starting weights were trained on",
                stacklevel=2,
            )
    progress = report_progress(run.say, "recording the training images, for later checks of held-out data")
    run.identity.keep_data(train)
    run.on_main(lambda: _remember(run.directory / RECORD, train, data, paths, progress))


def _remember(
    path: Path,
    train: Dataset,
    data: DataConfig,
    built_on: Iterable[Path],
    progress: Callable[[int, int], None],
) -> None:
    before = read_record(path)
    known = set() if before is None else {entry["fingerprint"] for entry in before.data}
    members = members_of(train)
    if all(member.fingerprint() in known for member, _ in members):
        return
    notes = []
    for member, captioned in members:
        fingerprint = member.fingerprint()
        if data.fit == "random":  # random crops differ between copies of an image
            member = member.at(fit="center")
        notes.append(note(member, fingerprint, progress, captioned))
    write_record(path, reduce(or_, filter(None, [*notes, *map(read_record, built_on), before])))
