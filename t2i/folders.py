"""Files and folders of results that appear whole or not at all."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from t2i.errors import InputError


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
