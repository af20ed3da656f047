"""What a corpus says of its files, on disk: it may be larger than memory."""

import json
import sqlite3
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import override

_CACHE_KIB = 4096


class DiskTable(AbstractContextManager["DiskTable"]):
    """Values by key in a temporary file, a few megabytes of it in memory. A key may have several values, in order.

    Used as a context, at whose end the file is gone. Values are what JSON holds.

    Args:
        rows: Keys and values to begin with.
    """

    def __init__(self, rows: Iterable[tuple[str, object]] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ossicle-")
        # autocommit and neither journal nor sync: nobody reads the file after a crash
        self._base = sqlite3.connect(Path(self._folder.name) / "table.sqlite", isolation_level=None)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self._base.execute(f"PRAGMA {setting}")
        self._base.execute("CREATE TABLE entries (key BLOB, value TEXT)")
        self._base.execute("CREATE INDEX by_key ON entries (key)")
        with ExitStack() as undo:  # what rows raise must not leave the file behind
            undo.callback(self.close)
            self._base.execute("BEGIN")
            self._base.executemany("INSERT INTO entries VALUES (?, ?)", ((_key(k), json.dumps(v)) for k, v in rows))
            self._base.execute("COMMIT")
            undo.pop_all()

    def add(self, key: str, value: object = None) -> None:
        """Give a key a value more."""
        self._base.execute("INSERT INTO entries VALUES (?, ?)", (_key(key), json.dumps(value)))

    def all(self, key: str) -> list[Any]:
        """A key's values, in the order in which they came."""
        found = self._base.execute("SELECT value FROM entries WHERE key = ? ORDER BY rowid", (_key(key),))
        return [json.loads(value) for (value,) in found]

    def last(self, key: str, default: object = None) -> Any:  # noqa: ANN401  whatever was put there
        """A key's last value, or another where it has none."""
        query = "SELECT value FROM entries WHERE key = ? ORDER BY rowid DESC LIMIT 1"
        found = self._base.execute(query, (_key(key),)).fetchone()
        return default if found is None else json.loads(found[0])

    def __contains__(self, key: str) -> bool:
        """Whether a key has a value."""
        query = "SELECT 1 FROM entries WHERE key = ? LIMIT 1"
        return self._base.execute(query, (_key(key),)).fetchone() is not None

    def close(self) -> None:
        """Remove the file."""
        self._base.close()
        self._folder.cleanup()

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _key(key: str) -> bytes:
    """A key's bytes: names of files need not be valid UTF-8."""
    return key.encode("utf-8", "surrogatepass")
