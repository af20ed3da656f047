"""Files that are whole or absent, and hashes of what they hold."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", *, durable: bool = True) -> Generator[IO[Any]]:
    """Open a file that appears under its name only when the block ends well.

    The bytes go to a hidden sibling, are flushed to the disk, and take the name in one step. A killed writer, an
    error or a full disk leaves what stood there before.

    Args:
        path: The file.
        mode: How it is opened.
        durable: Whether it outlasts a loss of power too. Waiting for the disk takes milliseconds to tenths of a second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".part")
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)  # nothing stands there once it has its own name


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Write JSON atomically, readable and with a stable order of keys as given; ``durable`` as in atomic_write."""
    with atomic_write(path, "w", durable=durable) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path) -> Any:  # noqa: ANN401  JSON has any shape
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: object, length: int = 16) -> str:
    """A short hash of any JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]
