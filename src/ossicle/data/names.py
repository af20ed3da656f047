"""Names that must be unique, checked with memory that does not grow with them: digests in buckets on the disk."""

import hashlib
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np

_BUCKETS = 64


class NameCheck:
    """Takes names one by one and says which may have come twice.

    Each name's digest (blake2b, 64 bits) goes to one of 64 files by its last bits, and each file is sorted on its own:
    a billion names need 8 GB of disk and 125 MB of memory for a while.

    Args:
        buckets: Open files, which nobody else reads.
    """

    def __init__(self, buckets: list[IO[bytes]]) -> None:
        self._buckets = buckets

    def add(self, name: str) -> None:
        """Take a name."""
        digest = digest_name(name)
        self._buckets[digest[0] % len(self._buckets)].write(digest)

    def repeated(self) -> set[bytes]:
        """Digests that came more than once: of names given twice, or, once in a blue moon, of two names alike."""
        found: set[bytes] = set()
        for bucket in self._buckets:
            bucket.seek(0)
            digests = np.sort(np.frombuffer(bucket.read(), dtype="<u8"))
            found.update(digest.tobytes() for digest in np.unique(digests[1:][digests[1:] == digests[:-1]]))
        return found


def digest_name(name: str) -> bytes:
    """Eight bytes of blake2b of a name; a name may hold bytes that are no text, as file names do."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()


@contextmanager
def checked_names(folder: Path) -> Generator[NameCheck]:
    """A check whose files lie in a folder without names, and are gone when the block or the process ends."""
    with ExitStack() as stack:
        yield NameCheck([stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(_BUCKETS)])
