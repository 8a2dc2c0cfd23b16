"""Files and folders of results that appear whole or not at all."""

import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from t2i.errors import InputError
from t2i.names import shown


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when all went well, and vanishes otherwise.

    Raises:
        InputError: `out` is a file or holds something, or cannot be written.
    """
    out = Path(os.path.abspath(out))
    refuse_used(out)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    above = [folder for folder in partial.parents if not folder.exists()]
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"cannot write {out}: {why}; free some space or name another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # they hold the new folder
            for folder in above:
                folder.rmdir()


@contextmanager
def new_file(out: Path, durable: bool = False) -> Iterator[Path]:
    """A name ending in `.tmp` beside `out`: the file written there replaces `out` when all went well, else it vanishes.

    Args:
        durable: the file and its folder entry are on the disk at the end, so that a power cut loses neither.

    Raises:
        OSError: it cannot be written; `out` is as it was.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        if durable:
            flush(temporary)
        os.replace(temporary, out)
        if durable:
            flush(out.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(out: Path, text: str, durable: bool = False) -> None:
    """Writes a text file in UTF-8 whole or not at all; lone surrogates become `?`.

    Raises:
        InputError: it cannot be written; `out` is as it was.
    """
    try:
        with new_file(out, durable) as temporary:
            temporary.write_text(text, "utf-8", errors="replace")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {out}: {reason}; free some space or name another folder") from error


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_used(out: Path) -> None:
    """Raises InputError when `out` is a file or holds something, so that it can be told before any work."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds files" if out.is_dir() else "is a file"
        raise InputError(f"output folder {out} {what}; name a new or an empty folder")


def walk(root: Path) -> Iterable[str]:
    """Paths of all files below root, with `/`. Links to folders are followed, each folder once."""
    pending, visited = [""], set()
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    if entry.is_dir():
                        pending.append(f"{folder}{entry.name}/")
                    elif entry.is_file() or entry.is_symlink():  # a dangling link is a broken picture, a pipe is none
                        yield folder + entry.name
        except OSError as error:
            why = f"{error.strerror or error}; check its permissions"
            raise InputError(f"cannot list folder {shown(root / folder)}: {why}") from error


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        return [line for line in read_utf8(path).replace("\r\n", "\n").split("\n") if line.strip()]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        InputError: it cannot be read, is cut off, or is no JSON.
    """
    try:
        return json.loads(read_utf8(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        why = f"{error.msg} at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise InputError(f"{path} is not whole JSON ({why}); download it again") from error


def read_utf8(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path} line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}); re-save the file as UTF-8"
        ) from error


def read_header(path: Path, name: str, kind: str) -> dict[str, Any]:
    """The JSON object under `name` in the header of a safetensors file; `kind` says in words what such a file holds.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    try:
        with safe_open(path, "np") as file:
            found = json.loads((file.metadata() or {})[name])
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check its name and permissions") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} does not hold {kind}; name another file") from error


def read_tensors(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Raises InputError: one of them is not there, or cannot be read."""
    try:
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and make it anew") from error


def write_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a safetensors file whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with new_file(path) as partial:
            save_file({name: np.ascontiguousarray(its) for name, its in tensors.items()}, partial, metadata)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {path}: {why}; free some space or name another folder") from error
