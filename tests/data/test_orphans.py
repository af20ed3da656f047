import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Each message is far larger than a pipe holds, and nobody reads: the reading processes are stuck in handing over.
CODE = """
import os, sys, time
from torch.utils.data import DataLoader, Dataset
from ossicle.data.orphans import end_with_parent

class Large(Dataset):
    def __len__(self): return 100
    def __getitem__(self, index):
        open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
        return bytes(10**6)  # no tensor, which would be shared

loader = iter(DataLoader(Large(), batch_size=None, num_workers=2, prefetch_factor=8, worker_init_fn=end_with_parent))
next(loader), next(loader)  # one from each
print("reading", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system ends orphans on Linux alone")
def test_reading_processes_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline().strip() == "reading"
    readers = [int(file.name) for file in tmp_path.iterdir()]
    assert len(readers) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{reader}").exists() and "(zombie)" not in state(reader) for reader in readers):
        assert time.monotonic() < end, "a reading process outlived the one that it read for"
        time.sleep(0.1)


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "(zombie)"
