import platform
import subprocess
import sys

import pytest

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
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "plain")
    )
    pages = 3 * 40_000_000 // 4096
    assert given_back > 0.9 * pages
    assert kept < 0.01 * pages
