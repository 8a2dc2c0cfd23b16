"""Reads only regular files of limited size, and writes files and folders atomically."""

import errno
import json
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from t2i.errors import InputError, os_errors
from t2i.names import shown, some

MAX_TEXT_BYTES = 1 << 30  # size of a text or JSON file that is read at once
MAX_LINE_BYTES = 1 << 26
_CHUNK = 1 << 20
_LFS = b"version https://git-lfs.github.com/spec/"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def open_regular(path: Path | str, limit: int | None = None) -> BufferedReader:
    """Opens a regular file for reading; links are followed. Pipes and devices are refused, as reading them could block.

    Args:
        limit: maximum size in bytes; None: any size.

    Raises:
        OSError: the file cannot be opened, is not a regular file, or is larger than `limit`; `strerror` says which.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    status = os.fstat(descriptor)
    why = ""
    if not stat.S_ISREG(status.st_mode):
        why = f"it is {next((name for test, name in _KINDS if test(status.st_mode)), 'special')}, not a plain file"
    elif limit is not None and status.st_size > limit:
        why = f"it has {status.st_size:,} bytes, over the limit of {limit:,}"
    if why:
        os.close(descriptor)
        raise OSError(errno.EINVAL, why, str(path))
    return open(descriptor, "rb")


def read_regular(path: Path | str, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Returns the bytes of a regular file of at most `limit` bytes; raises the errors of `open_regular`."""
    with open_regular(path, limit) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # `read(limit)` would allocate `limit` bytes


def memory_bytes() -> int:
    """Returns the size of this machine's memory."""
    import psutil

    return psutil.virtual_memory().total


def check_file(path: Path, limit: int | None = None) -> None:
    """Refuses pipes, devices, Git LFS pointers and files that are too large.

    Args:
        limit: maximum size in bytes; None: the size of the machine's memory.

    Raises:
        InputError: `path` is one of these, or cannot be opened.
    """
    with os_errors(f"cannot read {path}", "replace it by the model's file"):
        with open_regular(path, limit or memory_bytes()) as file:
            if file.read(len(_LFS)) == _LFS:
                raise InputError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` there")


def text_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 file without line ends and without a byte order mark.

    Raises:
        OSError: the file cannot be read or is not a regular file.
        InputError: a line is not UTF-8 or too long; the message names file and line.
    """
    number, parts = 1, list[bytes]()  # number and parts of the line that has not ended yet
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            whole, end, rest = chunk.rpartition(b"\n")
            if end:
                lines = _decoded(path, number, b"".join([*parts, whole])).split("\n")
                yield from (line.removesuffix("\r") for line in lines)
                number, parts = number + len(lines), []
            parts.append(rest)
            if len(parts) * _CHUNK > MAX_LINE_BYTES:
                raise InputError(f"{path} line {number} is over {MAX_LINE_BYTES:,} bytes long; is it a text file?")
    if last := b"".join(parts):
        yield _decoded(path, number, last).removesuffix("\r")


def _decoded(path: Path, line: int, data: bytes) -> str:
    """Decodes lines of a file, of which the first has the number `line`."""
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        place, byte = f"{path} line {line + data[: error.start].count(10)}", data[error.start]
        raise InputError(f"{place} is not UTF-8 (byte 0x{byte:02x}); re-save the file as UTF-8") from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder beside `out` that is renamed to `out` on success and removed otherwise.

    Raises:
        InputError: `out` is a file, is not empty, or cannot be written.
    """
    out = Path(os.path.abspath(out))
    refuse_used(out)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    above = [folder for folder in partial.parents if not folder.exists()]
    try:
        partial.mkdir(parents=True)
        yield partial
        if os.name == "nt" and out.exists():
            out.rmdir()
        partial.rename(out)  # replaces an empty folder, except on Windows
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"cannot write {out}: {why}; free some space or name another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # they are not empty if the new folder was written
            for folder in above:
                folder.rmdir()


@contextmanager
def new_file(out: Path, durable: bool = False) -> Iterator[Path]:
    """Yields a path ending in `.tmp` beside `out`; the file written there replaces `out` on success and is removed otherwise.

    Args:
        durable: flush the file and its folder entry to disk, so that they survive a power failure.

    Raises:
        OSError: the file cannot be written; `out` is unchanged.
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
    """Writes a UTF-8 text file atomically; lone surrogates become `?`.

    Raises:
        InputError: the file cannot be written; `out` is unchanged.
    """
    with os_errors(f"cannot write {out}", "free some space or name another folder"):
        with new_file(out, durable) as temporary:
            temporary.write_text(text, "utf-8", errors="replace")


def flush(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def at_home(place: str | Path) -> Path:
    """Returns a path with `~` replaced by the home folder; `~name` of an unknown user is left as it is."""
    return Path(os.path.expanduser(place))


def refuse_unwritable(out: Path | None, kind: str, option: str = "") -> None:
    """Raises InputError if a file cannot be written; call it before the work whose result the file will hold.

    Args:
        out: None: no file will be written.
        kind: kind of the file, e.g. `a JSON file`.
        option: the option that named the file; "": none.
    """
    if out is None:
        return
    why = ""
    if out.is_dir():
        why = "is a folder"
    elif not out.parent.is_dir():
        why = f"cannot be written: there is no folder {out.parent}"
    else:
        try:
            tempfile.TemporaryFile(dir=out.parent).close()
        except OSError as error:
            why = f"cannot be written: {out.parent}: {error.strerror or error}"
    if why:
        fix = f"name {kind} in an existing folder" + ("" if option else " with --out")
        raise InputError(f"{option} {out} {why}; {fix}".strip())


def refuse_used(out: Path) -> None:
    """Raises InputError if `out` is a file or is not empty; call it before any work is done."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds files" if out.is_dir() else "is a file"
        raise InputError(f"output folder {out} {what}; name a new or an empty folder")


def walk(root: Path, enter: Callable[[str], None] = lambda folder: None) -> Iterable[str]:
    """Yields the paths of all files below `root`, with `/`; skips hidden files and enters each folder once.

    Args:
        enter: called with each folder, as `` or `a/b/`, before it is listed.

    Raises:
        InputError: a folder cannot be listed.
    """
    pending, visited = [""], set()
    while pending:
        folder = pending.pop()
        with os_errors(f"cannot list folder {shown(root / folder)}", "check its permissions"):
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            enter(folder)
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    if entry.is_dir():
                        pending.append(f"{folder}{entry.name}/")
                    elif entry.is_file() or entry.is_symlink():  # dangling links count as broken images
                        yield folder + entry.name


def contents(folder: Path, most: int = 5) -> str:
    """Returns the first names in a folder for a message, e.g. `a.png, images/ and 4 more`; `nothing` if it is empty."""
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir())
    return some(names, most) or "nothing"


def link(source: Path, path: Path) -> None:
    """Makes `path` a hard link to a file, or a symbolic link on another file system."""
    target = os.path.realpath(source)
    try:
        os.link(target, path)
    except OSError:  # another file system, or one without hard links
        path.symlink_to(target)


def lines_of(path: Path) -> list[str]:
    """Returns the lines of a text file that are not empty; raises InputError if it cannot be read or is not UTF-8."""
    with os_errors(f"cannot read {path}", "check its permissions"):
        return [line for line in text_lines(path) if line.strip()]


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        InputError: the file cannot be read or is not valid JSON.
    """
    try:
        return json.loads(read_utf8(path))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        why = f"{error.msg} at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise InputError(f"{path} is not valid JSON ({why}); download it again") from error


def read_utf8(path: Path) -> str:
    """Returns the text of a file; raises the errors of `read_regular`, or InputError if the file is not UTF-8."""
    return _decoded(path, 1, read_regular(path))


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file, or an empty one if there is none."""
    try:
        tree = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}
