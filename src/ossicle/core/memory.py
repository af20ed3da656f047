"""Memory of a CPU process that trains: kept between steps, in large pages.

glibc hands large blocks back to the system when they are freed, and takes them again a moment later: each page of 4 KiB
is then found missing, cleared and mapped, in every step. A copy of 80 MB takes 45 ms so, and 8 ms where the memory is
kept (docs/results/step_cpu.md).
"""

import ctypes
import os
import platform
from typing import Final

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_AHEAD_BYTES: Final = 64 * 2**20
_NEVER: Final = -1
HUGE_PAGES: Final = "THP_MEM_ALLOC_ENABLE"
"""What torch reads when it first allocates."""


def keep_memory() -> bool:
    """Have this process keep what it frees, and torch ask for pages of 2 MiB. Call it before torch allocates.

    Memory goes back to the system when the process ends: its resident set is the largest that it needed.

    Returns:
        Whether the C library is one that can be told so.
    """
    os.environ.setdefault(HUGE_PAGES, "1")
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    told = [libc.mallopt(_MMAP_MAX, 0), libc.mallopt(_TRIM_THRESHOLD, _NEVER), libc.mallopt(_TOP_PAD, _AHEAD_BYTES)]
    return all(told)
