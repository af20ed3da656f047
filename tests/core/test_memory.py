import os
import platform
import subprocess
import sys

import pytest

from ossicle.core.memory import HUGE_PAGES, peak_resident_bytes

PLAIN = {key: value for key, value in os.environ.items() if key != HUGE_PAGES}
FAULTS = """
import resource, sys
from ossicle.core.memory import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(10_000_000)  # more than the 32 MiB to which glibc adapts by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what is told")
def test_memory_that_is_kept_is_not_mapped_again() -> None:
    kept, given_back = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, env=PLAIN
            ).stdout
        )
        for how in ("keep", "plain")
    )
    pages = 3 * 40_000_000 // 4096
    assert given_back > 0.9 * pages
    assert kept < 0.01 * pages


PEAK = """
from ossicle.core.memory import peak_resident_bytes
before = peak_resident_bytes()
block = b"x" * 100_000_000
print(before, peak_resident_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere getrusage tells it")
def test_the_peak_is_the_programs_own_and_not_that_of_who_started_it() -> None:
    held = b"x" * 300_000_000
    ran = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, after = map(int, ran.stdout.split())
    assert before < len(held) / 3
    assert after - before == pytest.approx(100_000_000, rel=0.1)
    assert peak_resident_bytes() > len(held)


RETURNED = """
from pathlib import Path
from ossicle.core.memory import keep_memory, return_memory
keep_memory()
import torch
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = resident()
torch.ones(50_000_000)
kept = resident() - before
return_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what is told")
def test_memory_that_was_kept_can_be_returned() -> None:
    ran = subprocess.run([sys.executable, "-c", RETURNED], capture_output=True, text=True, check=True)
    kept, left = map(int, ran.stdout.split())
    assert kept > 190_000_000
    assert left < 20_000_000
