"""Reads what a training run left: its newest intact checkpoint, the config in it, and the weights to use.

Pipelines, tokenizers, dual encoders and reports all open a run here.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from t2i import checkpoint
from t2i.errors import InputError
from t2i.names import shown

Tensors = Mapping[str, Tensor]
RECORD = "trained_on.safetensors"  # in a run or a saved pipeline: hashes of what it was trained on
PREFERRED = ("best", "ema", "model")  # best by a score on val, averaged, last


class _Odd(BaseModel):
    """A JSON object of which some keys are checked and the others kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Data(_Odd):
    address: str
    resolution: int = Field(ge=1, le=65536)
    fit: Literal["center", "random", "pad", "squash"]


class _Config(_Odd):
    data: _Data


class _Best(_Odd):
    metric: str
    value: float
    step: int


class _Versions(_Odd):
    t2i: str = "unknown"


class Manifest(_Odd):
    """The keys of a checkpoint's manifest that readers of a finished run use."""

    family: str
    step: int = Field(ge=0)
    config: _Config
    images_seen: int = Field(default=0, ge=0)
    sha256: str = ""
    config_hash: str = ""
    versions: _Versions = _Versions()
    text_digest: str | None = None
    guide_digest: str | None = None
    tokenizer_digest: str | None = None
    best: _Best | None = None


@dataclass(frozen=True)
class TrainedRun:
    """A run directory, read and checked.

    Attributes:
        checkpoint: the folder of its newest intact checkpoint.
        manifest: of that checkpoint: family, step, config, digests, versions.
        state: name of a part -> its tensors.
    """

    folder: Path
    checkpoint: Path
    manifest: dict[str, Any]
    state: Mapping[str, Tensors]

    @property
    def family(self) -> str:
        return self.manifest["family"]

    @property
    def weights(self) -> Tensors:
        """The best weights, else the averaged ones, else the last.

        Raises:
            InputError: the checkpoint has none of these.
        """
        for part in PREFERRED:
            if part in self.state:
                return self.state[part]
        raise InputError(
            f"checkpoint {self.checkpoint} of the family {self.family} has no part {' or '.join(PREFERRED)}; "
            "train the run anew"
        )


def open_run(folder: Path) -> TrainedRun:
    """Reads the newest intact checkpoint of a run directory and warns of each damaged one it skips.

    Raises:
        InputError: `folder` is no run, has no intact checkpoint, or a link in it leads out of it.
    """
    root = folder / "checkpoints"
    if not root.is_dir() and not (folder / "config.yaml").is_file():
        what = "is no run directory: it holds no checkpoints" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}; name a run directory of t2i train")
    refuse_links(folder, "checkpoints")
    newest = _newest(root)
    state, manifest = checkpoint.load(newest)
    return TrainedRun(folder, newest, checked(manifest, newest / checkpoint.MANIFEST), state)


def checked(manifest: dict[str, Any], where: Path) -> dict[str, Any]:
    """The manifest with defaults for what it lacks, once the keys that readers use have the right types.

    Raises:
        InputError: one is of another type, or what nothing can do without is missing; the message names `where`.
    """
    try:
        full = Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{where} is no manifest that this version of t2i reads ({key}: {first['msg']}); train or save the model anew"
        ) from error
    filled = full.model_dump(include={"images_seen", "sha256", "config_hash", "versions"})
    return filled | manifest | {"versions": filled["versions"]}


def _newest(root: Path) -> Path:
    with warnings.catch_warnings(record=True) as skipped:
        warnings.simplefilter("always")
        newest = checkpoint.latest(root)
    if newest is None and skipped:
        raise InputError(f"no checkpoint in {root} is intact, the newest: {skipped[0].message}; train the run anew")
    if newest is None:
        raise InputError(
            f"run {root.parent} has no checkpoint yet; train on to its first (config key checkpointing_steps)"
        )
    for warning in skipped:
        warnings.warn(warning.message, stacklevel=4)
    return newest


def refuse_links(folder: Path, *names: str) -> None:
    """Refuses what would make reading or writing in `folder` reach outside it, or wait for ever.

    Args:
        names: files and folders below `folder`, walked whole; missing ones are passed over.

    Raises:
        InputError: one is, or holds, a link that leads outside `folder`, a pipe or a device.
    """
    home = Path(os.path.realpath(folder))  # unlike `resolve`, it does not raise where links lead in a circle
    # the hub's cache keeps each file once, in `blobs` beside `snapshots`
    home = next((above.parent for above in home.parents if above.name == "snapshots"), home)
    for name in names:
        top = folder / name
        for path in [top, *(top.rglob("*") if top.is_dir() else ())]:
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
                raise InputError(f"{shown(path)} is a link that leads out of {folder}; put the files themselves there")
            if path.exists() and not path.is_file() and not path.is_dir():
                raise InputError(f"{shown(path)} is a pipe or a device and no file; delete it")
