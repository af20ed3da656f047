"""Files of distant stores on this machine's own disk: fetched once a machine, bounded in size."""

import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ossicle.core.errors import ConfigError, DataError

DEFAULT_GB = 20.0
_LOG = logging.getLogger(__name__)
_PART = ".part"
_LOCKS = ".locks"
_NUM_LOCKS = 64

Fill = Callable[[BinaryIO], None]
"""Writes a file's bytes to an open file that stands at its start; raises where it cannot."""


@dataclass(frozen=True, slots=True)
class _Entry:
    used: float
    size: int
    path: Path


class ShardCache:
    """A folder that all processes of a machine share, of at most ``max_gb``; the longest unused files give way.

    A file is fetched by one process, while the others that want it wait, and appears under its name whole. A file that
    gives way loses its name only: whoever has it open goes on reading, and the disk gets its space back when the last
    of them closes it. Room is made before a fetch begins and counts fetches under way at their full size, so the files
    that have a name never exceed the bound. What a killed process left half-fetched is removed by the next fetch.

    Args:
        dir: The folder, made where it is missing, on a disk of this machine; None for one of this user's own where the
            machine keeps temporary files.
        max_gb: Most bytes that it holds, in 10^9 bytes; 0 keeps nothing.

    Raises:
        ConfigError: A negative bound.
    """

    def __init__(self, dir: Path | str | None = None, max_gb: float = DEFAULT_GB) -> None:  # noqa: A002  the config's key
        if max_gb < 0:
            raise ConfigError(f"data.cache.max_gb={max_gb} is no size", "give gigabytes, or 0 to keep nothing")
        own = Path(tempfile.gettempdir()) / f"ossicle-{os.getuid()}"
        self.folder = own if dir is None else Path(dir).expanduser()
        self.max_bytes = int(max_gb * 1e9)
        self._warned: set[str] = set()

    def open(self, key: str, size: int, fill: Fill) -> int | None:
        """Open a file of the cache, fetching it where it is not there.

        Args:
            key: Its path below the folder.
            size: Its size in bytes, which must be known.
            fill: Fetches it.

        Returns:
            A descriptor for reading, which the caller closes, or None where the cache has no room for it.

        Raises:
            DataError: The folder cannot be written.
        """
        path = self.folder / key
        descriptor = _open_used(path)
        if descriptor is not None:
            return descriptor
        if self.max_bytes == 0:
            return None
        if size > self.max_bytes:
            self._warn(f"the cache of {self.max_bytes} bytes cannot hold {key} of {size}: it is read from afar")
            return None
        try:
            with self._lock(f"{int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % _NUM_LOCKS:02d}"):
                descriptor = _open_used(path)  # another process may have fetched it while this one waited
                return self._fetch(path, size, fill) if descriptor is None else descriptor
        except OSError as error:
            mend = "make room there, or name another data.cache.dir"
            raise DataError(f"{self.folder} cannot be written: {error}", mend) from error

    def scratch(self, fill: Fill) -> BinaryIO:
        """A file without a name in the folder, filled: it is gone when it is closed. For what must be on a disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as until_filled:
            file = until_filled.enter_context(tempfile.TemporaryFile(dir=self.folder))
            fill(file)
            file.flush()
            until_filled.pop_all()  # the caller closes it
        return file

    def drop(self, key: str) -> None:
        """Take a file's name away."""
        (self.folder / key).unlink(missing_ok=True)

    def num_bytes(self) -> int:
        """Bytes of all files that have a name, those being fetched included."""
        return sum(entry.size for entry in self._entries())

    def _fetch(self, path: Path, size: int, fill: Fill) -> int | None:
        part = self._reserve(path, size)
        if part is None:
            self._warn(f"the cache of {self.max_bytes} bytes is full of fetches under way: {path.name} is read afar")
            return None
        name, file = part
        try:
            with file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
                _check_size(file, size, path)
                descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
                name.replace(path)
        finally:
            name.unlink(missing_ok=True)  # nothing stands there once it has its own name
        return descriptor

    def _reserve(self, path: Path, size: int) -> tuple[Path, BinaryIO] | None:
        """Make room for a file and begin it at its full size; None where there is none to be had."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock("room"):
            if not self._make_room(size):
                return None
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=_PART)
            # held as long as the fetch lives, and let go by a kill: that is how others know it is under way
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.truncate(descriptor, size)
        return Path(name), os.fdopen(descriptor, "r+b")

    def _make_room(self, size: int) -> bool:
        entries = self._entries()
        for entry in [entry for entry in entries if entry.path.suffix == _PART and _is_abandoned(entry.path)]:
            entry.path.unlink(missing_ok=True)
            entries.remove(entry)
        total = sum(entry.size for entry in entries) + size
        finished = sorted((e for e in entries if e.path.suffix != _PART), key=lambda entry: entry.used)
        if total - sum(entry.size for entry in finished) > self.max_bytes:
            return False
        for entry in finished:
            if total <= self.max_bytes:
                break
            entry.path.unlink(missing_ok=True)
            total -= entry.size
        return True

    def _entries(self) -> list[_Entry]:
        entries: list[_Entry] = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder) / name
                if path.parent.name != _LOCKS:
                    with suppress(FileNotFoundError):  # a fetch that ended meanwhile
                        found = path.stat()
                        entries.append(_Entry(found.st_mtime, found.st_size, path))
        return entries

    @contextmanager
    def _lock(self, name: str) -> Generator[None]:
        path = self.folder / _LOCKS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:  # said aloud: closing does not let go where a process was forked meanwhile
                fcntl.flock(file, fcntl.LOCK_UN)

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            _LOG.warning("%s", text)


def touch(descriptor: int) -> None:
    """Note that an open file of the cache is in use."""
    os.utime(descriptor)


def _open_used(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):  # of the latter the fetch makes an error that says what to do
        return None
    with suppress(PermissionError):  # another user's file: whose it is keeps it fresh
        touch(descriptor)
    return descriptor


def _check_size(file: BinaryIO, size: int, path: Path) -> None:
    found = os.fstat(file.fileno()).st_size
    if found != size:
        raise DataError(f"{path.name} came with {found} bytes instead of {size}", "prepare it again")


def _is_abandoned(path: Path) -> bool:
    """Whether the process that fetched a file is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return False
    return True
