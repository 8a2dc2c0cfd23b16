"""The process of a command: its rank, its memory allocator, and the notice about its data address."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Has glibc reuse freed blocks of up to 1 GiB instead of returning them to the kernel.

    By default a tensor of over 32 MiB (initially 128 KiB) is mapped each time it is allocated, and each of its pages faults,
    which takes a third of the time of a training step of small networks (LOG.md). With this setting the process never shrinks.

    Returns:
        True if the C library accepts the settings, as only glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES - 1))


def is_first() -> bool:
    """Returns True for the first of torchrun's processes, and for a process that runs alone."""
    return os.environ.get("RANK", "0") == "0"


def print_address_notice(address: str) -> None:
    """Prints how a bare path is interpreted, on one process of a run."""
    import sys

    from t2i.data import parse_address

    notice = parse_address(address).notice
    if notice and is_first():
        print(notice, file=sys.stderr)
