"""What readers of other toolkits' manifests share: splits by name, rows of JSON, paths from a root."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data_prep.recordings import Recording, Recordings, file_size, guess_seconds
from ossicle.core.errors import DataError

SPLITS = {"training": "train", "valid": "dev", "validation": "dev", "val": "dev", "testing": "test"}
"""Words of other toolkits for the splits that ours call train, dev and test."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")

Row = Mapping[str, object]
"""A JSON object."""


class Manifests(Recordings):
    """A corpus that other toolkits' lists tell of.

    Args:
        input: The folder of the lists, or one list.
        root: Where relative paths of audio begin; None: as the format has it.
        splits: New names for splits, by their names in the corpus; a split whose new name is null is left out. Else
            valid, validation and val are called dev, training and testing train and test, and others keep their names.
    """

    def __init__(
        self,
        input: str | Path,  # noqa: A002  the name that users write
        root: str | Path | None = None,
        splits: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__(input)
        self.root = None if root is None else Path(root)
        self.splits = dict(splits or {})
        self.name = self.input.resolve().name.split(".")[0] or "manifests"

    def split(self, name: str) -> str | None:
        """Our name for a split, or None where it is left out."""
        if name in self.splits:
            return self.splits[name]
        return SPLITS.get(name.lower(), _UNSAFE.sub("-", name).strip("-") or "train")

    def place(self, path: str, folder: Path) -> str:
        """A path of audio from the corpus's folder or absolute, for a list that lies in another folder."""
        return str((self.root or folder) / path)

    def audio(self, source: Recording) -> Path | bytes:
        """The file that a recording is in: paths are whole here."""
        return Path(source.path)

    def rows(self, path: Path) -> Iterator[tuple[int, Row, str]]:
        """Line number, object and problem of every line of a file of JSON lines, which may be gzipped.

        Raises:
            DataError: The file cannot be read.
        """
        for number, line in enumerate(self.lines(path), start=1):
            try:
                row = json.loads(line)
                problem = "" if isinstance(row, dict) else f"{path}, line {number}: {line[:60]!r} is no JSON object"
            except json.JSONDecodeError as error:
                row, problem = {}, f"{path}, line {number}: {line[:60]!r} is no JSON: {error}"
            yield number, row if not problem else {}, problem

    def found(self, patterns: Iterable[str]) -> list[Path]:
        """The lists in the input folder, by patterns of their names, or the input where it is itself a list.

        Raises:
            DataError: There is none.
        """
        if self.input.is_file():
            return [self.input]
        paths = sorted({path for pattern in patterns for path in self.input.glob(pattern) if path.is_file()})
        if not paths:
            problem = f"{self.input} holds no {' or '.join(patterns)}"
            raise DataError(problem, "point input at the folder with the lists, or at one list")
        return paths


def text_at(row: Row, *keys: str) -> str:
    """The first text or number at some keys; empty where there is none."""
    for key in keys:
        value = row.get(key)
        if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
            return str(value)
    return ""


def number_at(row: Row, key: str) -> float | None:
    """The finite number at a key, also one written as text; None where there is none."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def objects_at(row: Row, key: str) -> list[Row]:
    """The objects in the list at a key; empty where there is none."""
    value = row.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def object_at(row: Row, key: str) -> Row:
    """The object at a key, or an empty one."""
    value = row.get(key)
    return value if isinstance(value, dict) else {}


def seconds_of(path: str) -> float:
    """About how long a file is, by its size; 0 where it is missing."""
    return guess_seconds(path, file_size(Path(path)) or 0)
