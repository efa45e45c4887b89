"""Memory of a training on a CPU."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Make the C library of this process keep what it frees, for the next allocation; returns whether it can.

    By default glibc asks the kernel for every large tensor and gives it back after use, and the kernel zeroes each page again when it
    is first touched: 400 000 pages and 0.7 of 2.6 processor seconds in a joint step on 80 x 96 x 80 voxels. The peak of the memory
    stays what it was, to 5 %, but it is not given back before the process ends. Elsewhere than on glibc nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
