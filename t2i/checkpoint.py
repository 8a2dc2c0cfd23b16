"""Writes and reads atomic, verified, self-describing checkpoints of safetensors files and a manifest.json; no pickle.

A checkpoint is one directory `step-00001234/`. It is written under a temporary name; every file is flushed to disk; the
manifest (schema, step, size and SHA-256 of each file, and its own SHA-256) is written last; then the directory is renamed and
its parent flushed. A directory under its final name is therefore complete, and later damage is detected.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from t2i.errors import InputError
from t2i.files import flush, open_regular, read_regular

SCHEMA = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_STEP = re.compile(r"step-(\d{8,})")
_NAME = re.compile(r"[A-Za-z0-9_]+")
_RESERVED = frozenset({"schema", "step", "files", "sha256"})

State = Mapping[str, Mapping[str, Tensor]]


def save(root: Path, step: int, state: State, manifest: Mapping[str, Any]) -> Path:
    """Writes `root/step-XXXXXXXX/{name}.safetensors` and its manifest atomically.

    Args:
        root: the folder of a run's checkpoints, created if it is missing. Only one process may write to it: half-written
            folders of killed writers are removed.
        step: names the checkpoint. An intact checkpoint of this step is kept as it is; a damaged one is replaced.
        state: name of a part -> its tensors, on any device and in any memory layout.
        manifest: further keys (config, config_hash, images_seen, family, ...), plain JSON values.

    Raises:
        InputError: the disk is full or the folder cannot be written; older checkpoints are unchanged.
    """
    if unfit := [name for name in state if not _NAME.fullmatch(name)]:
        raise ValueError(f"names of parts must consist of letters, digits and _, got {unfit}")
    if clash := _RESERVED & manifest.keys():
        raise ValueError(f"manifest keys {sorted(clash)} are reserved")
    final = root / f"step-{step:08d}"
    if verify(final) is None:
        return final
    temporary = root / f"{final.name}.tmp-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        _check_space(root, step, state)
        temporary.mkdir()
        _fill(temporary, step, state, manifest)
        if final.exists():
            os.rename(final, root / f"{final.name}.tmp-damaged")
        os.rename(temporary, final)
        flush(root)
        _remove_leftovers(root)
    except OSError as error:
        raise InputError(
            f"cannot write checkpoint {final}: {error.strerror or error}; free some space or repair the folder; "
            "older checkpoints are intact"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _fill(folder: Path, step: int, state: State, manifest: Mapping[str, Any]) -> None:
    files: dict[str, dict[str, Any]] = {}
    for name, tensors in state.items():
        # copies, since safetensors refuses tensors that share memory, such as tied weights
        plain = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
        data = safetensors.torch.save(plain)
        files[f"{name}.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _write(folder / f"{name}.safetensors", data)
    whole = {"schema": SCHEMA, "step": step, "files": files, **manifest}
    whole["sha256"] = _digest(whole)
    _write(folder / MANIFEST, _dump(whole).encode())
    flush(folder)


def _dump(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=1, allow_nan=False) + "\n"


def _digest(manifest: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a manifest without its own `sha256`."""
    return hashlib.sha256(_dump({k: v for k, v in manifest.items() if k != "sha256"}).encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _check_space(root: Path, step: int, state: State) -> None:
    tensors = (tensor for part in state.values() for tensor in part.values())
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors) + 1_000_000
    free = shutil.disk_usage(root).free
    if free < needed:
        raise InputError(
            f"no room for checkpoint {step} in {root}: it needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; "
            "free some space; older checkpoints are intact"
        )


def _remove_leftovers(root: Path) -> None:
    for leftover in root.glob("step-*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


# ---- reading -------------------------------------------------------------------------------------------------------


def steps(root: Path) -> list[Path]:
    """Returns the checkpoints under `root`, newest first, including damaged ones but not half-written ones."""
    numbered = [(int(match[1]), path) for path in root.glob("step-*") if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(numbered, reverse=True)]


def _read_manifest(path: Path) -> dict[str, Any] | str:
    """Returns the manifest of a checkpoint, or the reason why it cannot be trusted."""
    try:
        text = read_regular(path / MANIFEST, MAX_MANIFEST_BYTES).decode()
        manifest = json.loads(text)
    except OSError as error:
        return f"{MANIFEST}: {error.strerror or error}"
    except (ValueError, RecursionError):
        return f"{MANIFEST} is not JSON"
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(key), int) for key in ("schema", "step")):
        return f"{MANIFEST} has no schema and step"
    if manifest["schema"] > SCHEMA:
        return f"{MANIFEST} has schema {manifest['schema']}, newer than this t2i reads ({SCHEMA}); upgrade t2i"
    # the text is compared too, since a flipped bit can turn 1e-05 into 1E-05, which is the same number
    try:
        same = text == _dump(manifest) and manifest.get("sha256") == _digest(manifest)
    except ValueError:  # NaN
        same = False
    if not same:
        return f"{MANIFEST} was changed after it was written"
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(map(_is_entry, files, files.values())):
        return f"{MANIFEST} does not list the files of a checkpoint"
    if path.resolve().name != f"step-{manifest['step']:08d}":
        return f"{MANIFEST} is of step {manifest['step']}"
    return manifest


def _is_entry(name: str, entry: Any) -> bool:
    """Returns True for a valid entry of the manifest; its name is not a path, so it cannot point outside the folder."""
    plain = name.endswith(".safetensors") and _NAME.fullmatch(name.removesuffix(".safetensors"))
    typed = isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
    return bool(plain) and typed


def _read_files(path: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, bytes | str]]:
    """Yields (file name, its bytes or a message about its damage) for every file of the manifest."""
    for name, entry in manifest["files"].items():
        try:
            with open_regular(path / name) as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read() if size == entry["bytes"] else b""
        except OSError as error:
            yield name, f"{name}: {error.strerror or error}"
            continue
        if size != entry["bytes"]:
            yield name, f"{name} has {size:,} bytes, not {entry['bytes']:,}"
        elif hashlib.sha256(data).hexdigest() != entry["sha256"]:
            yield name, f"{name} has changed since it was written (another sha256)"
        else:
            yield name, data


def verify(path: Path) -> str | None:
    """Returns why a checkpoint is damaged, None if every byte is as it was written. Reads all files."""
    manifest = _read_manifest(path)
    if isinstance(manifest, str):
        return manifest
    return next((data for _, data in _read_files(path, manifest) if isinstance(data, str)), None)


def latest(root: Path, fits: Callable[[Mapping[str, Any]], bool] = lambda manifest: True) -> Path | None:
    """Returns the newest intact checkpoint under `root` whose manifest `fits`, or None; warns about each damaged one."""
    for path in steps(root):
        reason = verify(path)
        if reason is None:
            if fits(read_manifest(path)):
                return path
            continue
        warnings.warn(f"checkpoint {path} is damaged and skipped: {reason}", stacklevel=2)
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of one checkpoint, without reading its other files.

    Raises:
        InputError: the manifest is missing or damaged.
    """
    manifest = _read_manifest(path)
    if isinstance(manifest, str):
        raise InputError(f"checkpoint {path} cannot be used: {manifest}")
    return manifest


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Reads one checkpoint as (part -> tensors on the CPU, manifest), from the bytes that were verified.

    Raises:
        InputError: the checkpoint is missing or damaged.
    """
    manifest = read_manifest(path)
    state: dict[str, dict[str, Tensor]] = {}
    for name, data in _read_files(path, manifest):
        if isinstance(data, str):
            raise InputError(f"checkpoint {path} is damaged: {data}; use an older one")
        try:
            state[name.removesuffix(".safetensors")] = safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise InputError(
                f"checkpoint {path}: {name} is not a safetensors file ({error}); use an older one"
            ) from error
    return state, manifest


def rotate(root: Path, limit: int, keep: Collection[Path] = ()) -> None:
    """Deletes the oldest checkpoints until `limit` (at least 2) intact ones are left; never deletes one of `keep`.

    Checkpoints are verified before they are counted, so that a damaged one never displaces an intact one.
    """
    _remove_leftovers(root)
    intact = 0
    pinned = {path.resolve() for path in keep}
    for path in steps(root):
        if intact < max(2, limit):
            reason = verify(path)
            intact += reason is None
            if reason is not None:
                warnings.warn(f"checkpoint {path} is damaged: {reason}", stacklevel=2)
        elif path.resolve() not in pinned:
            # renamed first, so that a process killed meanwhile never leaves an incomplete folder under a valid name
            doomed = path.with_name(f"{path.name}.tmp-old")
            os.rename(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


# ---- state of modules -----------------------------------------------------------------------------------------------

OTHER_MODEL = "name another run directory, or train with the config this one was started with"


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copies a state dict into a module; `what` names the part in messages.

    Raises:
        InputError: a tensor is missing, unknown, or has another shape; the module is unchanged.
    """
    own = module.state_dict()
    for name in [*own, *(name for name in tensors if name not in own)]:
        problem = None
        if name not in tensors:
            problem = f"has no tensor {name}"
        elif name not in own:
            problem = f"has a tensor {name}, which this model does not have"
        elif own[name].shape != tensors[name].shape:
            problem = f"has {name} of shape {list(tensors[name].shape)}, this model of shape {list(own[name].shape)}"
        if problem:
            raise InputError(f"checkpoint of another model: {what} {problem}; {OTHER_MODEL}")
    module.load_state_dict(dict(tensors))
