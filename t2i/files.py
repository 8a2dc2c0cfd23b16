"""Files that are opened only when they are plain and small enough; files and folders that appear whole or not at all."""

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

from t2i.errors import InputError
from t2i.names import shown

MAX_TEXT_BYTES = 1 << 30  # a text or JSON file that is read whole
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
    """Opens a plain file for reading; links are followed.

    Nothing is read from a pipe or a device, which would block or never end.

    Args:
        limit: the most bytes that the file may have; None: any number.

    Raises:
        OSError: it cannot be opened, is not a plain file, or is larger than `limit`; `strerror` says which.
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
    """Returns the bytes of a plain file of at most `limit` bytes; raises as `open_regular` does."""
    with open_regular(path, limit) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # `read(limit)` would allocate so much


def memory_bytes() -> int:
    """Memory of this machine: a larger file cannot be read whole."""
    import psutil

    return psutil.virtual_memory().total


def check_file(path: Path, limit: int | None = None) -> None:
    """Refuses what must not be read: pipes, devices, Git LFS pointers, files that do not fit into memory.

    Args:
        limit: most bytes; None: as many as the machine has memory.

    Raises:
        InputError: `path` is one of these, or cannot be opened.
    """
    try:
        with open_regular(path, limit or memory_bytes()) as file:
            if file.read(len(_LFS)) == _LFS:
                raise InputError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` there")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; put the model's own file there") from error


def text_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 file without their ends; a byte order mark is dropped.

    Raises:
        OSError: it cannot be read or is not a plain file.
        InputError: a line is not UTF-8 or too long; the message names file and line.
    """
    number, parts = 1, list[bytes]()  # of a line that has not ended yet
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
    """The text of lines of a file, the first of which has the number `line`."""
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, line + data[: error.start].count(b"\n"), error) from error


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> InputError:
    byte = error.object[error.start]
    return InputError(f"{path} line {line} is not UTF-8 (byte 0x{byte:02x}); re-save the file as UTF-8")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder beside `out` that becomes `out` on success and is removed otherwise.

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
        if os.name == "nt" and out.exists():
            out.rmdir()
        partial.rename(out)  # elsewhere it replaces an empty folder, whose name is free at no moment
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"cannot write {out}: {why}; free some space or name another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # not empty: they hold the new folder
            for folder in above:
                folder.rmdir()


@contextmanager
def new_file(out: Path, durable: bool = False) -> Iterator[Path]:
    """Yields a name ending in `.tmp` beside `out`; the file written there replaces `out` on success, else it is removed.

    Args:
        durable: flush the file and its folder entry to the disk, so that a power cut loses neither.

    Raises:
        OSError: it cannot be written; `out` is unchanged.
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
        InputError: it cannot be written; `out` is unchanged.
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


def refuse_unwritable(out: Path, kind: str, option: str = "") -> None:
    """Refuses, before any work, a file that could not be written in the end.

    Args:
        kind: of the file, as `a JSON file`.
        option: the option that named it; "": none did.

    Raises:
        InputError: it is a folder, or its folder does not exist or cannot be written.
    """
    why = ""
    if out.is_dir():
        why = "is a folder"
    elif not out.parent.is_dir():
        why = f"cannot be written: there is no folder {out.parent}"
    else:
        try:
            with tempfile.TemporaryFile(dir=out.parent):
                pass
        except OSError as error:
            why = f"cannot be written: {out.parent}: {error.strerror or error}"
    if why:
        fix = f"name {kind} in an existing folder" + ("" if option else " with --out")
        raise InputError(f"{option} {out} {why}; {fix}".strip())


def refuse_used(out: Path) -> None:
    """Raises InputError when `out` is a file or is not empty; call it before any work is done."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds files" if out.is_dir() else "is a file"
        raise InputError(f"output folder {out} {what}; name a new or an empty folder")


def walk(root: Path, enter: Callable[[str], None] = lambda folder: None) -> Iterable[str]:
    """Yields the paths of all files below `root`, with `/`; hidden ones are skipped, each folder is entered once.

    Args:
        enter: called with each folder, as `` or `a/b/`, before it is listed.

    Raises:
        InputError: a folder cannot be listed.
    """
    pending, visited = [""], set()
    while pending:
        folder = pending.pop()
        try:
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
                    elif entry.is_file() or entry.is_symlink():  # a dangling link is a broken image; a pipe is skipped
                        yield folder + entry.name
        except OSError as error:
            why = f"{error.strerror or error}; check its permissions"
            raise InputError(f"cannot list folder {shown(root / folder)}: {why}") from error


def lines_of(path: Path) -> list[str]:
    """Returns the lines of a text file that are not empty.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        return [line for line in text_lines(path) if line.strip()]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        InputError: it cannot be read, is cut off, or is not JSON.
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
    """The text of a file of at most `MAX_TEXT_BYTES`.

    Raises:
        OSError: it cannot be read, is not a plain file, or is too large.
        InputError: it is not UTF-8.
    """
    return _decoded(path, 1, read_regular(path))
