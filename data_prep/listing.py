"""What the small files of known corpora share: tables read by line, folders listed in order, parts chosen by name."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ossicle.core.errors import ConfigError, DataError


def check_known(key: str, wanted: Sequence[str] | None, known: Iterable[str]) -> tuple[str, ...] | None:
    """The names that an option asks for, each once, or None where it leaves the choice to what is there.

    Raises:
        ConfigError: A name is not known, or there is none.
    """
    if wanted is None:
        return None
    names = list(known)
    strange = [name for name in wanted if name not in names]
    if strange or not wanted:
        raise ConfigError(f"{key}={list(wanted)} names no part of the corpus", f"choose from {', '.join(names)}")
    return tuple(name for name in names if name in wanted)


def inside(folder: Path, name: str) -> Path:
    """The folder of that name where it is there, else the folder itself: an archive may be unpacked in either."""
    return folder / name if (folder / name).is_dir() else folder


def present(folder: Path, wanted: Sequence[str] | None, known: Iterable[str], what: str) -> list[str]:
    """The folders that are wanted, or those of the known ones that are there.

    Args:
        folder: Where they lie.
        wanted: Names that must be there, or None.
        known: All names that there may be, in order.
        what: The corpus, for the message.

    Raises:
        DataError: A wanted one is missing, or none is there.
    """
    there = [name for name in known if (folder / name).is_dir()] if folder.is_dir() else []
    if wanted is not None:
        missing = [name for name in wanted if name not in there]
        if missing:
            mend = f"unpack {', '.join(missing)} there, or choose from what is there: {', '.join(there) or 'nothing'}"
            raise DataError(f"{folder} has no folder {', '.join(missing)}", mend)
        return list(wanted)
    if not there:
        problem = f"{folder} does not look like {what}: it has none of the folders {', '.join(known)}"
        raise DataError(problem, f"point input at the folder of {what} as it was unpacked")
    return there


def folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in order.

    Raises:
        DataError: It cannot be read.
    """
    return [entry.name for entry in _scan(folder) if entry.is_dir()]


def files(folder: Path, suffix: str) -> list[tuple[str, int]]:
    """Names without their suffix, and sizes in bytes, of the files in a folder that end so, in order of names.

    Raises:
        DataError: The folder cannot be read.
    """
    return [
        (entry.name.removesuffix(suffix), entry.stat().st_size if entry.is_file() else 0)
        for entry in _scan(folder)
        if entry.name.endswith(suffix) and not entry.name.startswith(".")
    ]


def rows(
    lines: Iterator[str], path: Path, needed: Iterable[str], separator: str = "\t"
) -> Iterator[tuple[dict[str, str], str]]:
    """Rows of a table with a header, by column, each with its problem, which is empty for a good one.

    Args:
        lines: The table's lines, the header first.
        path: Where they come from, for the messages.
        needed: Columns that there must be.
        separator: What stands between columns.

    Raises:
        DataError: The header lacks a column.
    """
    header = next(lines, "").split(separator)
    missing = [column for column in needed if column not in header]
    if missing:
        problem = f"{path} has no column {', '.join(missing)}: its first line begins {separator.join(header)[:80]!r}"
        raise DataError(problem, "fetch it again, or point input at the corpus that it belongs to")
    for line in lines:
        cells = line.split(separator)
        problem = ""
        if len(cells) != len(header):
            problem = f"{path}: {len(cells)} columns where the first line has {len(header)}: {line[:60]!r}"
        yield dict(zip(header, [*cells, *[""] * len(header)], strict=False)), problem


def number(text: str) -> float | None:
    """A finite, non-negative number, or None where the text is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _scan(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        mend = "check the path and its permissions"
        raise DataError(f"the folder {folder} cannot be read: {error.strerror}", mend) from error
