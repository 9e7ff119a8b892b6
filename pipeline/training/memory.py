"""The memory of a training process."""

import ctypes

# glibc's names for its limits, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
_LARGEST_TRIM_THRESHOLD = (1 << 31) - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Makes the C library keep blocks that are freed, for the next step to use.

    By default glibc hands large blocks back to the system, which must find and clear their pages
    anew in every step: up to an eighth of the step of a wide model on a CPU. What a process keeps
    is about what it held at most. Blocks above 32 MB are handed back still, and so is what lies
    free at the end of the heap beyond 2 GB.

    Returns:
        Whether this C library can; others than glibc are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    limits = {
        _M_MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD,
        _M_TRIM_THRESHOLD: _LARGEST_TRIM_THRESHOLD,
    }
    return all(mallopt(name, limit) == 1 for name, limit in limits.items())
