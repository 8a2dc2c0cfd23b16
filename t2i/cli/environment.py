"""The process that a command runs in: its rank, its memory, and what it says about its data."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Lets glibc hand freed blocks of up to 1 GiB out again instead of returning each to the kernel.

    By default a tensor of over 32 MiB (at first, of 128 KiB) is mapped afresh each time, and every page of it faults: on a
    training step of small networks that is a third of the time (LOG.md). The process then stays as large as it once was.

    Returns:
        True where the C library accepts the settings; only glibc knows them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES - 1))


def is_first() -> bool:
    """True in the first of torchrun's processes, and in a process that runs alone."""
    return os.environ.get("RANK", "0") == "0"


def tell_address(address: str) -> None:
    """Prints how a bare path was understood, on one process of a run."""
    import sys

    from t2i.data import parse_address

    notice = parse_address(address).notice
    if notice and is_first():
        print(notice, file=sys.stderr)
