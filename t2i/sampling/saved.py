"""Reads and writes pipelines: a training run, a folder of components, a model on the hub.

model_index.json            family, checkpoint manifest, sha256 of each file
generator/config.json       one folder for each component of the family
generator/model.safetensors
text_encoder/               files for `t2i.text.load_encoder`
trained_on.safetensors      hashes of the training data, if the run has them and is not private
README.md, grid.png         the model card
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from t2i import __version__
from t2i.errors import InputError, first_problem, os_errors, reason_of
from t2i.families import Components, Sampler, sampler_class
from t2i.families.tokenizers import CONFIG, WEIGHTS
from t2i.files import memory_bytes, read_regular, write_text
from t2i.sampling.hub import EXPECTED, download
from t2i.text import TextEncoder, load_encoder, writing
from t2i.trained import RECORD, checked, open_run, refuse_links
from t2i.weights import INDEX, find, shared_text_encoder, shipped

TEXT = "text_encoder"
DEFAULTS = "sampling.json"  # in a run: default settings for sampling
CLASS_NAME = "TextToImagePipeline"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Stored(NamedTuple):
    """A pipeline on the disk, after it has been read and checked."""

    family: str
    manifest: dict[str, Any]  # of the checkpoint that holds the weights
    components: Components
    text: TextEncoder
    home: Path  # the run or the saved folder, which also holds its scores
    is_run: bool
    guidance_scale: float | None = None  # None: the sampler's default
    truncation: float = 1.0
    settings: Mapping[str, Any] = {}  # of the family; missing ones have the sampler's defaults


class Defaults(BaseModel):
    """sampling.json, written by `t2i eval sweep` or by hand."""

    model_config = ConfigDict(extra="forbid")

    guidance_scale: float | None = Field(default=None, ge=0, allow_inf_nan=False)  # None: the sampler's default
    truncation: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    settings: dict[str, Any] = {}


class _Index(BaseModel):
    """model_index.json."""

    model_config = ConfigDict(extra="forbid")

    class_name: str = Field(alias="_class_name", pattern=f"^{CLASS_NAME}$")
    t2i_version: str = Field(alias="_t2i_version")
    family: str
    guidance_scale: float = Field(ge=0, allow_inf_nan=False)
    truncation: float = Field(ge=0, allow_inf_nan=False)
    settings: dict[str, Any] = {}
    text_digest: str
    sha256: dict[str, str]  # of every file of the components
    checkpoint: dict[str, Any]


def read(place: str | Path, subfolder: str | None = None, hub: Mapping[str, Any] = {}) -> Stored:
    """Reads a pipeline.

    Args:
        place: a run directory (its newest intact checkpoint), a saved pipeline, the name of a model that ships with the
            package, or `owner/name` on the hub.
        subfolder: the folder in `place` to read.
        hub: arguments of `huggingface_hub.snapshot_download`.

    Raises:
        InputError: there is no pipeline, or it is damaged, incomplete or of an unknown family.
    """
    if not isinstance(place, str | Path) or not str(place):
        raise InputError(f"no pipeline at {place!r}; {EXPECTED}")
    if subfolder is not None and not isinstance(subfolder, str):
        raise InputError(f"subfolder must be a folder's name, got {subfolder!r:.40}")
    path = find(place) / (subfolder or "")
    if ".." in Path(subfolder or "").parts or (subfolder and Path(subfolder).is_absolute()):
        raise InputError(f"subfolder {subfolder!r} leads out of {place}; name a folder in it")
    if (path / INDEX).is_file():
        return _read_saved(path)
    if path.is_dir():
        return _read_run(path)
    if path.exists():
        raise InputError(f"{path} is a file; {EXPECTED}")
    # `runs/typo` has the form of a hub id, but if there is a folder `runs`, the user meant a run in it
    if not _HUB_ID.fullmatch(str(place)) or Path(place).parent.is_dir():
        name = next((name for name in shipped() if name == Path(place).name.lower()), None)
        hint = f"; {name}, without a path and in lower case, is the model that ships with t2i" if name else ""
        raise InputError(f"{path if subfolder else place} does not exist; {EXPECTED}{hint}")
    return _read_saved(download(str(place), subfolder, hub))


# ---- a run ---------------------------------------------------------------------------------------------------------


def _read_run(folder: Path) -> Stored:
    if not (folder / "checkpoints").is_dir() and not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} is not a run directory: it holds neither checkpoints nor {INDEX}; {EXPECTED}")
    refuse_links(folder, "text", "tokenizer", DEFAULTS, "samples", RECORD)
    run = open_run(folder)
    components = sampler_class(run.family, run.checkpoint).components_of(run)
    text = _read_text(folder / "text", run.manifest.get("text_digest"))
    return Stored(run.family, run.manifest, components, text, folder, True, *_read_defaults(folder / DEFAULTS))


def _read_defaults(path: Path) -> tuple[float | None, float, dict[str, Any]]:
    if not path.exists():
        return None, 1.0, {}
    try:
        defaults = Defaults.model_validate_json(read_regular(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; correct or delete it") from error
    except ValidationError as error:
        raise InputError(
            f"{path} does not hold valid defaults for sampling ({first_problem(error)}); correct or delete it"
        ) from error
    return defaults.guidance_scale, defaults.truncation, defaults.settings


def write_defaults(run: Path, defaults: Defaults) -> None:
    """Writes the default settings of a run; raises InputError if the folder cannot be written."""
    write_text(run / DEFAULTS, json.dumps(defaults.model_dump(), indent=1) + "\n")


def _read_text(folder: Path, digest: str | None) -> TextEncoder:
    """Reads the text encoder and checks that the generator was trained with it."""
    try:
        encoder = load_encoder(folder)
    except InputError:
        raise
    # each kind of encoder raises other errors for damaged files
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the text encoder in {folder} is damaged: {reason_of(error)}; copy or train it again"
        ) from error
    if digest is not None and encoder.digest() != digest:
        raise InputError(
            f"{folder} holds another text encoder than the generator was trained with; copy the original one there"
        )
    return encoder


# ---- a saved pipeline ----------------------------------------------------------------------------------------------


def _read_saved(folder: Path) -> Stored:
    refuse_links(folder, INDEX)
    index = _read_index(folder / INDEX)
    parts = sampler_class(index.family, folder).parts
    refuse_links(folder, *parts, TEXT, RECORD)
    components: Components = {}
    for name in parts:
        config = _read_file(folder, f"{name}/{CONFIG}", index)
        weights = _read_file(folder, f"{name}/{WEIGHTS}", index)
        try:
            components[name] = (_object(config), safetensors.torch.load(weights))
        except (ValueError, RecursionError, safetensors.SafetensorError) as error:
            raise InputError(
                f"{folder / name} does not hold a component of t2i: {reason_of(error)}; save it again"
            ) from error
    text = _read_text(text_folder(folder), index.text_digest)
    knobs = index.guidance_scale, index.truncation, index.settings
    return Stored(index.family, index.checkpoint, components, text, folder, False, *knobs)


def _object(data: bytes) -> dict[str, Any]:
    config = json.loads(data)
    if not isinstance(config, dict):
        raise ValueError(f"its config is a {type(config).__name__}, not an object")
    return config


def text_folder(folder: Path) -> Path:
    """Returns the folder of the text encoder of a saved pipeline; the models that ship with the package share one."""
    own = folder / TEXT
    return own if own.exists() or folder not in shipped().values() else shared_text_encoder()


def _read_index(path: Path) -> _Index:
    try:
        index = _Index.model_validate_json(read_regular(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; {EXPECTED}") from error
    except ValidationError as error:
        raise InputError(f"{path} is not an index of a t2i pipeline ({first_problem(error)}); {EXPECTED}") from error
    checked(index.checkpoint, path)
    return index


def _read_file(folder: Path, name: str, index: _Index) -> bytes:
    with os_errors(f"cannot read {folder / name}", "save the pipeline again"):
        data = read_regular(folder / name, memory_bytes())
    if hashlib.sha256(data).hexdigest() != index.sha256.get(name):
        raise InputError(f"{folder / name} is damaged: its sha256 is not that in {INDEX}; copy or save it again")
    return data


def write(folder: Path, stored: Stored, dtype: torch.dtype | None = None) -> None:
    """Writes the index, the components, the text encoder and the hashes of the training data into an existing folder.

    Args:
        dtype: type of the components' floating-point tensors; None: unchanged. The text encoder is never converted, since
            its digest must not change.

    Raises:
        InputError: the disk is full or the folder is read-only.
    """
    digests: dict[str, str] = {}
    with writing(folder):
        for name, (config, tensors) in stored.components.items():
            plain = {key: _plain(tensor, dtype) for key, tensor in tensors.items()}
            files = {
                CONFIG: (json.dumps(_published(config), indent=1) + "\n").encode(),
                WEIGHTS: safetensors.torch.save(plain),
            }
            (folder / name).mkdir()
            for file, data in files.items():
                (folder / name / file).write_bytes(data)
                digests[f"{name}/{file}"] = hashlib.sha256(data).hexdigest()
        stored.text.save(folder / TEXT)
        index = {
            "_class_name": CLASS_NAME,
            "_t2i_version": __version__,
            "family": stored.family,
            "guidance_scale": stored.guidance_scale,
            "truncation": stored.truncation,
            "settings": dict(stored.settings),
            "text_digest": stored.text.digest(),
            "sha256": digests,
            "checkpoint": _published(_without_hashes(stored.manifest)),
        }
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", "utf-8")
        if (record := stored.home / RECORD).is_file() and "privacy" not in stored.manifest:
            (folder / RECORD).write_bytes(record.read_bytes())


def _without_hashes(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the manifest, for a private model without hashes of its training data, with which guesses could be checked."""
    return {key: value for key, value in manifest.items() if key != "data"} if "privacy" in manifest else manifest


def _published(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree with absolute paths cut to their last name: parent folders are private, and nothing reads them."""
    published: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            published[key] = _published(value)
        else:
            is_place = isinstance(value, str) and (key.endswith("path") or key in ("from", "init_from"))
            published[key] = Path(value).name if is_place and Path(value).is_absolute() else value
    return published


def _plain(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None, copy=True).contiguous()


def build(stored: Stored) -> Sampler:
    """Builds the sampler from the components of a pipeline.

    Raises:
        InputError: the components do not fit together, or no model can be built from them.
    """
    try:
        return sampler_class(stored.family, stored.home).load(stored.components, stored.text)
    except InputError:
        raise
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors())
        raise InputError(
            f"{stored.home} has a config that this version of t2i cannot read: {keys}; use the t2i that wrote it"
        ) from error
    # a valid config can still describe a network that cannot be built
    except (KeyError, TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise InputError(
            f"{stored.home} does not hold a model that can be built ({reason_of(error)}); copy or save it again"
        ) from error
