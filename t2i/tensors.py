"""Reads and writes safetensors files, and reads weight files that torch saved. Nothing is unpickled."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from t2i.errors import InputError
from t2i.files import check_file, new_file, open_regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from hashlib import _Hash as Hash

    from torch import Tensor


def read_header(path: Path, name: str, kind: str) -> dict[str, Any]:
    """Returns the JSON object under `name` in the header of a safetensors file.

    Args:
        kind: the contents of such a file, in words, for the message.

    Raises:
        InputError: the file cannot be read, or has no such object.
    """
    try:
        open_regular(path).close()
        with safe_open(path, "np") as file:
            header = json.loads((file.metadata() or {})[name])
        if not isinstance(header, dict):
            raise ValueError("not an object")
        return header
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check its name and permissions") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} does not hold {kind}; name another file") from error


def read_tensors(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the named tensors of a safetensors file; raises InputError if one is missing or cannot be read."""
    try:
        open_regular(path).close()
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and create it again") from error


def write_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a safetensors file atomically.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with new_file(path) as partial:
            # `save_file` would write a file that only its owner can read
            partial.write_bytes(save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata))
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {path}: {why}; free some space or name another folder") from error


def hash_values(total: "Hash", tensors: "Mapping[str, Tensor]") -> None:
    """Adds names and float32 values to a hash, which thus does not depend on the precision of lossless copies."""
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode())
        total.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())


def hash_bytes(total: "Hash", tensors: "Mapping[str, Tensor]") -> None:
    """Adds names, types, shapes and the bytes of the values to a hash."""
    import torch

    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)


def read_state_dict(path: Path, label: str, advice: str) -> "dict[str, Tensor]":
    """Returns the tensors of a `.safetensors` file, or of a state dict that torch saved; no code in it is run.

    Args:
        label: its name in messages, e.g. `Inception weights`.
        advice: which file to name instead.

    Raises:
        InputError: the file does not exist, is not a state dict, or has weights that are not finite.
    """
    import torch

    label = f"{label} {path}"
    if not path.exists():
        raise InputError(f"{label} not found; {advice}")
    if path.is_dir():
        raise InputError(f"{label} is a folder, not a file of weights; {advice}")
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # about kinds of files, which the error names
                weights = torch.load(path, map_location="cpu", weights_only=True)
    # damaged files raise SafetensorError, UnpicklingError, RuntimeError, EOFError, KeyError, ...
    except Exception as error:
        raise InputError(f"{label} {_refusal(error, advice)}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"{label} is not a state dict (names to tensors); {advice}")
    if bad := next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None):
        raise InputError(f"{label} has weights that are not finite ({bad}); {advice}")
    return weights


def _refusal(error: Exception, advice: str) -> str:
    """Explains why a file could not be loaded as weights."""
    message = str(error)
    if "TorchScript" in message or "GLOBAL" in message:
        what = "a TorchScript program" if "TorchScript" in message else "pickled objects besides tensors"
        return (
            f"holds {what}, which could run code; if you trust it, save its state dict "
            f"(torch.save(model.state_dict(), 'weights.pth')), or {advice}"
        )
    first = "" if "weights_only" in message else message.partition("\n")[0].partition(". ")[0]
    reason = ": ".join(filter(None, (type(error).__name__, shorten(first, 100, placeholder="..."))))
    return f"cannot be read as weights ({reason}); {advice}"
