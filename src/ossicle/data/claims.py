"""Claims on jobs by processes that share a directory: they spare double work, and nothing rests on them.

A claim is a lock on one byte of a file, by the byte's number, as POSIX has them; it ends with its process. Network file
systems pass such locks on between machines, and some are mounted without. Where they are missing, two processes may do
the same job: they write the same bytes under the same name, and each takes the name in one step.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Self

_LOG = logging.getLogger(__name__)
_TAKEN = frozenset({errno.EACCES, errno.EAGAIN})
_MISSING = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


class Claims:
    """Claims on the bytes of a file. One object a process and file: to close a file drops the process's locks on it.

    Args:
        path: The file, made where it is missing; nothing is written to it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._missing = False

    def __enter__(self) -> Self:
        """Stay open for a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, which ends all claims."""
        os.close(self._file)

    @contextmanager
    def hold(self, number: int, *, wait: bool) -> Generator[bool]:
        """Hold a claim for a block.

        Args:
            number: What is claimed.
            wait: Whether to wait while another process holds it.

        Yields:
            Whether it is held, or locks are missing here; False where another process holds it.
        """
        held = self._take(number, wait=wait)
        try:
            yield held
        finally:
            if held and not self._missing:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def _take(self, number: int, *, wait: bool) -> bool:
        if self._missing:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            if error.errno not in _MISSING:
                raise
            self._missing = True
            _say_once(self._path, str(error.strerror))
        return True


@cache
def _say_once(path: Path, reason: str) -> None:
    _LOG.warning("%s cannot be locked (%s): processes may do the same work twice", path, reason)
