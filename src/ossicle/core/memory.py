"""Memory of a CPU process that trains: kept between steps, in large pages; and the most that a process has had.

glibc hands large blocks back to the system when they are freed, and takes them again a moment later: each page of 4 KiB
is then found missing, cleared and mapped, in every step. A copy of 80 MB takes 45 ms so, and 8 ms where the memory is
kept (docs/results/step_cpu.md).
"""

import ctypes
import os
import platform
import resource
import sys
from pathlib import Path
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


def return_memory() -> None:
    """Give back to the system what this process has freed and kept, so that its resident set is what it has in use."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def peak_resident_bytes(process: str = "self") -> int:
    """The largest resident set that a process has had since it began its program, in bytes.

    Linux's getrusage also counts what the process was before its exec, which is its parent's memory where it was
    forked: so it serves only where there is no /proc, and there for this process alone.

    Args:
        process: Its number, or ``self``.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        if process != "self":
            raise
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), "0")
    return int(found) * 1024
