"""Opens a training run for use: reads its newest intact checkpoint with config and weights.

Pipelines, tokenizers, dual encoders and reports open runs with this module.
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
from t2i.errors import InputError, first_problem
from t2i.names import shown

Tensors = Mapping[str, Tensor]
RECORD = "trained_on.safetensors"  # hashes of the training data, in a run or a saved pipeline
PREFERRED = ("best", "ema", "model")  # the best weights by a score on val, the averaged ones, the last ones


class _Odd(BaseModel):
    """A JSON object of which some keys are checked; others are allowed."""

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
    """The keys of a checkpoint's manifest that are used after training."""

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
    """A run directory that was read and checked.

    Attributes:
        checkpoint: the folder of its newest intact checkpoint.
        manifest: the manifest of that checkpoint: family, step, config, digests, versions.
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
        """The best weights; without them the averaged ones, else the last ones.

        Raises:
            InputError: the checkpoint has none of these.
        """
        for part in PREFERRED:
            if part in self.state:
                return self.state[part]
        raise InputError(
            f"checkpoint {self.checkpoint} of the family {self.family} has no part {' or '.join(PREFERRED)}; "
            "train the run again"
        )


def open_run(folder: Path) -> TrainedRun:
    """Reads the newest intact checkpoint of a run directory and warns of each damaged one it skips.

    Raises:
        InputError: `folder` is not a run, has no intact checkpoint, or a link in it leads out of it.
    """
    root = folder / "checkpoints"
    if not root.is_dir() and not (folder / "config.yaml").is_file():
        what = "is not a run directory: it holds no checkpoints" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}; name a run directory of t2i train")
    refuse_links(folder, "checkpoints")
    newest = _newest(root)
    state, manifest = checkpoint.load(newest)
    return TrainedRun(folder, newest, checked(manifest, newest / checkpoint.MANIFEST), state)


def checked(manifest: dict[str, Any], where: Path) -> dict[str, Any]:
    """Checks the types of a manifest's keys and returns it with defaults for missing ones.

    Raises:
        InputError: a key has the wrong type, or a required key is missing; the message names `where`.
    """
    try:
        full = Manifest.model_validate(manifest)
    except ValidationError as error:
        raise InputError(
            f"{where} is not a manifest that this version of t2i can read ({first_problem(error)}); train or save the model "
            "again"
        ) from error
    filled = full.model_dump(include={"images_seen", "sha256", "config_hash", "versions"})
    return filled | manifest | {"versions": filled["versions"]}


def _newest(root: Path) -> Path:
    with warnings.catch_warnings(record=True) as skipped:
        warnings.simplefilter("always")
        newest = checkpoint.latest(root)
    if newest is None and skipped:
        raise InputError(f"no checkpoint in {root} is intact, the newest: {skipped[0].message}; train the run again")
    if newest is None:
        raise InputError(
            f"run {root.parent} has no checkpoint yet; train until its first one (config key checkpointing_steps)"
        )
    for warning in skipped:
        warnings.warn(warning.message, stacklevel=4)
    return newest


def refuse_links(folder: Path, *names: str) -> None:
    """Refuses files with which reading or writing in `folder` would reach outside it or block forever.

    Args:
        names: files and folders below `folder`, which are walked recursively; missing ones are ignored.

    Raises:
        InputError: one of them is, or holds, a pipe, a device, or a link that leads outside `folder`.
    """
    home = Path(os.path.realpath(folder))  # unlike `resolve`, it does not raise for circular links
    # the hub's cache stores files in `blobs`, beside the links in `snapshots`
    home = next((above.parent for above in home.parents if above.name == "snapshots"), home)
    for name in names:
        top = folder / name
        for path in [top, *(top.rglob("*") if top.is_dir() else ())]:
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
                raise InputError(
                    f"{shown(path)} is a link that leads out of {folder}; replace it by the files themselves"
                )
            if path.exists() and not path.is_file() and not path.is_dir():
                raise InputError(f"{shown(path)} is a pipe or a device, not a file; delete it")
