"""A folder of results that appears whole or not at all."""

import os
import shutil
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


def refuse_used(out: Path) -> None:
    """Raises InputError when `out` is a file or holds something, so that it can be told before any work."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds files" if out.is_dir() else "is a file"
        raise InputError(f"output folder {out} {what}; name a new or an empty folder")
