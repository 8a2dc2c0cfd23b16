"""How this process keeps memory that torch gives back on a CPU."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Lets glibc hand freed blocks of up to 1 GiB out again instead of returning each to the kernel.

    By default a tensor of over 32 MiB (at first, of 128 KiB) is mapped afresh each time, and every page of it faults: on a
    training step of small networks that is a third of the time (LOG.md). The process then stays as large as it once was.

    Returns:
        Whether the C library took it; others than glibc do not know these settings.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES - 1))
