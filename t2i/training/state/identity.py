"""Checks that a resumed run has the same data and the same frozen networks as when it was started.

The manifest of every checkpoint holds a digest of each. Digests depend on contents alone, so folders may be moved.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i.config.load import to_yaml
from t2i.config.training import TrainConfig
from t2i.data import NO_CAPTION, Dataset
from t2i.distributed import Ranks
from t2i.errors import InputError
from t2i.names import counted


class Identity:
    """Digests of a run's data and frozen networks. Call its methods on every rank, before `Run.resume`.

    Args:
        directory: the run directory, for messages.
        manifest: manifest of the checkpoint that the run resumes from; None for a new run.

    Attributes:
        digests: the digests, which become entries of every manifest.
        caption: a caption of the data, for the command that is shown at the end of a run.
    """

    def __init__(self, directory: Path, ranks: Ranks, manifest: Mapping[str, Any] | None):
        self.digests: dict[str, Any] = {}
        self.caption = "a prompt"
        self._directory, self._ranks, self._manifest = directory, ranks, manifest

    def keep(self, key: str, digest: str | None, what: str) -> None:
        """Records the digest of a frozen network under `key`.

        Raises:
            InputError: on every rank, if the run was started with another `what`, or if the ranks have different ones.
        """
        if len(set(self._ranks.everyone(digest))) > 1:
            raise InputError(f"the processes of this run have different {what}s; start all of them with one command")
        self.refuse_other(key, digest, what)
        self.digests[key] = digest

    def keep_data(self, train: Dataset) -> None:
        """Records the digest of the training data; call it before anything is written.

        Raises:
            InputError: on every rank, if the run was started with other data, or if the ranks have different data.
        """
        digest = self._ranks.each(lambda: data_digest(train))
        everyone = self._ranks.everyone(digest)
        if any(one != everyone[0] for one in everyone):
            each = "; ".join(f"rank {rank}: {describe_data(one)}" for rank, one in enumerate(everyone))
            raise InputError(f"the processes of this run have different data ({each}); give all of them the same data")
        if self._manifest is not None and "data" in self._manifest:
            refuse_other_data(self._directory, self._manifest["data"], digest)
        self.digests["data"] = digest
        self.caption = str(train.captions[0][0])

    def keep_held_out(self, split: str, dataset: Dataset | None) -> None:
        """Records the digest of a validation split, None if the data does not have it; raises errors as `keep` does."""
        self.keep(f"{split}_digest", None if dataset is None else dataset.digest(), f"split {split} of the data")

    def refuse_other(self, key: str, digest: str | None, what: str) -> None:
        """Raises InputError if the run was started with another `what`; runs of early versions, without digests, pass."""
        if self._manifest is not None and key in self._manifest and self._manifest[key] != digest:
            before, now = (text[:12] if text else "none" for text in (self._manifest[key], digest))
            raise InputError(
                f"the {what} is not the one that run {self._directory} was started with (digest {before}, now {now}); restore "
                "the old one to resume, or name another run directory"
            )

    def was_started_with(self, key: str, value: str | None) -> bool:
        """Returns True if a config key, e.g. `text.path`, has the value that it had when the run was started."""
        if self._manifest is None:
            return True
        section, _, leaf = key.partition(".")
        return (self._manifest["config"].get(section) or {}).get(leaf) == value


def config_digest(config: TrainConfig) -> str:
    """Returns the SHA-256 of a config's YAML text."""
    return hashlib.sha256(to_yaml(config).encode()).hexdigest()


def data_digest(dataset: Dataset) -> dict[str, Any]:
    """Returns counts and digests over all rows of a split, as JSON values."""
    ids, captions = hashlib.sha256(dataset.split.encode()), hashlib.sha256()
    number = 0
    for name, options in zip(dataset.ids, dataset.captions, strict=True):
        ids.update(json.dumps(name).encode())
        captions.update(json.dumps(list(options)).encode())
        number += sum(caption != NO_CAPTION for caption in options)
    counts = {"images": len(dataset), "number_of_captions": number}
    return counts | {"ids": ids.hexdigest(), "captions": captions.hexdigest(), "contents": dataset.digest()}


def refuse_other_data(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises InputError if the run in `directory` was started with other data."""
    changed = [
        f"{before.get(key):,} {what}, now {now[key]:,}"
        for key, what in (("images", "images"), ("number_of_captions", "captions"))
        if before.get(key) != now[key]
    ]
    changed += [
        f"other {what}"
        for key, what in (("ids", "names of images"), ("captions", "captions"))
        if before.get(key) != now[key]
    ]
    if not changed and before.get("contents") != now["contents"]:
        changed.append("other contents of image files")
    if changed:
        raise InputError(
            f"the data is not what run {directory} was started with ({'; '.join(changed)}); restore it to resume, or "
            "name another run directory to train on the new data"
        )


def describe_data(digest: Mapping[str, Any]) -> str:
    """Describes a data set in a few words, to show how the data of two processes differ."""
    return f"{describe_counts(digest)}, {str(digest['ids'])[:8]}"


def describe_counts(digest: Mapping[str, Any]) -> str:
    """Returns the number of images and captions in words."""
    return f"{counted(digest['images'], 'image')}, {counted(digest['number_of_captions'], 'caption')}"
