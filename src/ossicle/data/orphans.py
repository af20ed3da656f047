"""Reading processes do not outlive the process that they read for."""

import ctypes
import multiprocessing
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)


def end_with_parent(_worker: int) -> None:
    """Let the system end this reading process when the one that it reads for is gone, however that ended.

    One that is killed closes nothing: its reading processes would wait for ever to hand over what they have read, since
    each holds the other end of the queue open. Linux alone can do this.

    Args:
        _worker: Number of this process, as :class:`torch.utils.data.DataLoader` tells it.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    forked = multiprocessing.get_start_method() == "fork"
    if forked and parent is not None and os.getppid() != parent.pid:
        os._exit(1)  # it was gone before the system was asked
