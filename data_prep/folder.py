"""Any tree of audio files, with what a manifest says of them, or what their folders say."""

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from data_prep.disk_table import DiskTable
from data_prep.recordings import BYTES_PER_S, Recording, Recordings, file_size, guess_seconds, suffix_of
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.seeds import derive_seed

MANIFEST_NAME = "manifest.tsv"
PHONES_NAME = "phones.tsv"
_LOG = logging.getLogger(__name__)
_MANY_FOLDERS = 20


class _Splits:
    """Draws each key's split by its hash alone; where none falls to dev or test, the nearest key goes there.

    All keys are seen once before the first is asked for, and only the nearest of them are kept.

    Args:
        dev_fraction: Fraction of keys for dev.
        test_fraction: Fraction for test.
    """

    def __init__(self, dev_fraction: float, test_fraction: float) -> None:
        self.fractions = {"dev": dev_fraction, "test": test_fraction}
        self._drawn: set[str] = set()
        self._nearest: list[tuple[float, str]] = []  # of train: one for dev, one for test, and one that stays

    def see(self, key: str) -> None:
        """Count a key, which may come again."""
        place, split = self._draw(key)
        self._drawn.add(split)
        if split != "train" or (len(self._nearest) == 3 and place >= self._nearest[-1][0]):
            return
        if (place, key) not in self._nearest:
            self._nearest = sorted([*self._nearest, (place, key)])[:3]

    def of(self, key: str) -> str:
        """A key's split."""
        spare, moved = [near for _, near in self._nearest], dict[str, str]()
        for split, fraction in self.fractions.items():
            if fraction > 0 and split not in self._drawn and len(spare) > 1:
                moved[spare.pop(0)] = split
        return moved.get(key) or self._draw(key)[1]

    def _draw(self, key: str) -> tuple[float, str]:
        place, bound = derive_seed(0, "split", key) / 2**63, 0.0
        for split, fraction in self.fractions.items():
            bound += fraction
            if place < bound:
                return place, split
        return place, "train"


@dataclass(frozen=True)
class FolderSource(Recording):
    """A file, or what stands in its place.

    Args:
        bytes: The file's size.
    """

    bytes: int = 0


class FolderCorpus(Recordings):
    """The audio files in a folder and all below it, hidden ones left out.

    A manifest is tab-separated UTF-8 with a header; the column path is needed, and lang, speaker, text, split and
    duration_s are read where they are there. A phones.tsv beside it (path, start_s, end_s, phone) gives timed phones.
    Without a manifest a file's speaker is its folder, and its split is drawn by a hash: of the folder where there are
    many, so that a speaker is in one split alone, else of the file's own path. Nothing is kept in memory of folders and
    tables but one folder's names: they are read twice, and what must be looked up lies in a temporary file.

    Args:
        input: The folder.
        manifest: A manifest to go by: files that it does not list are not taken. None looks for manifest.tsv in the
            folder, and then a file that it does not list is counted as bad.
        dev_fraction: Fraction of folders or files for dev where no manifest says the split.
        test_fraction: Fraction for test.

    Raises:
        ConfigError: The fractions leave nothing for training.
    """

    def __init__(
        self,
        input: str | Path,  # noqa: A002  the name that users write
        manifest: str | Path | None = None,
        dev_fraction: float = 0.05,
        test_fraction: float = 0.05,
    ) -> None:
        if min(dev_fraction, test_fraction) < 0 or dev_fraction + test_fraction >= 1:
            problem = f"dev_fraction={dev_fraction} and test_fraction={test_fraction} leave nothing for train"
            raise ConfigError(problem, "give fractions whose sum is below 1")
        super().__init__(input)
        self.manifest = None if manifest is None else Path(manifest)
        self.dev_fraction = dev_fraction
        self.test_fraction = test_fraction
        self.name = self.input.resolve().name or "folder"

    @override
    def sources(self) -> Iterator[FolderSource]:
        found = self.input / MANIFEST_NAME
        manifest = self.manifest if self.manifest is not None or not found.is_file() else found
        sources = self._from_folders() if manifest is None else self._from_manifest(manifest)
        empty = True
        for source in sources:
            empty = False
            yield source
        if empty:
            kinds = " ".join(sorted(BYTES_PER_S))
            raise DataError(f"{self.input} holds no audio files", f"point input at a folder with any of {kinds}")

    def _walk(self) -> Iterator[tuple[str, int, str]]:
        """Path, size and problem of every audio file, in order of names; a folder that cannot be read is a problem."""
        try:
            entries = sorted(os.scandir(self.input), key=lambda entry: entry.name)
        except OSError as error:
            mend = "check the path and its permissions"
            raise DataError(f"the folder {self.input} cannot be read: {error.strerror}", mend) from error
        yield from self._visit(entries, {os.path.realpath(self.input)})

    def _visit(self, entries: Iterable["os.DirEntry[str]"], visited: set[str]) -> Iterator[tuple[str, int, str]]:
        begin = len(str(self.input).rstrip("/")) + 1
        for entry in entries:
            path = entry.path[begin:]
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    yield from self._descend(entry, visited)
                elif suffix_of(entry.name) in BYTES_PER_S:
                    size = entry.stat().st_size
                    yield path, size, "" if entry.is_file() else f"{entry.path} is no regular file"
            except OSError as error:
                yield path, 0, f"{entry.path} cannot be read: {error.strerror}"

    def _descend(self, entry: "os.DirEntry[str]", visited: set[str]) -> Iterator[tuple[str, int, str]]:
        real = os.path.realpath(entry.path)  # links may lead in circles
        if real not in visited:
            below = sorted(os.scandir(entry.path), key=lambda entry: entry.name)
            yield from self._visit(below, visited | {real})

    def _from_folders(self) -> Iterator[FolderSource]:
        of_folders, of_files, folders = self._splits(), self._splits(), set[str]()
        for path, _, _ in self._walk():
            folder = path.rpartition("/")[0] or "."
            of_folders.see(folder)
            of_files.see(path)
            if len(folders) < _MANY_FOLDERS:
                folders.add(folder)
        by_folder = len(folders) >= _MANY_FOLDERS
        for path, size, problem in self._walk():
            folder = path.rpartition("/")[0] or "."
            yield FolderSource(
                name=path,
                split=of_folders.of(folder) if by_folder else of_files.of(path),
                seconds=guess_seconds(path, size),
                path=path,
                bytes=size,
                speaker="" if folder == "." else folder,
                problem=problem,
            )

    def _from_manifest(self, manifest: Path) -> Iterator[FolderSource]:
        splits = self._splits()
        for _, row in _read_table(manifest, {"path"}):
            if not row.get("split"):
                splits.see(row["path"])
        with DiskTable(_read_phones(manifest.parent / PHONES_NAME)) as phones, DiskTable() as listed:
            for line, row in _read_table(manifest, {"path"}):
                yield self._of_row(row, f"{manifest}, line {line}", line, splits, phones, listed)
                listed.add(row["path"])
            yield from self._unlisted(manifest, (file for file in self._walk() if file[0] not in listed))

    def _of_row(  # noqa: PLR0917  what is known of the table
        self, row: dict[str, str], where: str, line: int, splits: _Splits, phones: DiskTable, listed: DiskTable
    ) -> FolderSource:
        path = row["path"]
        again = path in listed
        size = file_size(self.input / path)
        problem = row.get("", "")
        if again:
            problem = f"{where}: {path} is listed for the second time"
        elif size is None:
            problem = problem or f"{where}: there is no file {self.input / path}"
        return FolderSource(
            name=f"{path} (line {line})" if again else path,
            split=row.get("split") or splits.of(path),
            seconds=_number(row.get("duration_s", "")) or guess_seconds(path, size or 0),
            path=path,
            bytes=size or 0,
            language=row.get("lang", ""),
            speaker=row.get("speaker", ""),
            text=row.get("text", ""),
            phones=tuple((start_s, end_s, phone) for start_s, end_s, phone in phones.all(path)),
            problem=problem,
        )

    def _unlisted(self, manifest: Path, files: Iterator[tuple[str, int, str]]) -> Iterator[FolderSource]:
        if self.manifest is not None:
            if number := sum(1 for _ in files):
                _LOG.info("%d files in %s are not in %s and are not taken", number, self.input, manifest)
            return
        for path, size, problem in files:
            reason = problem or f"{manifest} has no row for it"
            yield FolderSource(path, "train", guess_seconds(path, size), path=path, bytes=size, problem=reason)

    def _splits(self) -> _Splits:
        return _Splits(self.dev_fraction, self.test_fraction)


def _read_table(path: Path, needed: set[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and row of a table; a row of the wrong width carries its problem under the empty name."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            first = next(lines, "").rstrip("\r\n")
            header = first.split("\t")
            missing = needed - set(header)
            if missing:
                problem = f"{path} has no column {', '.join(sorted(missing))}: its first line is {first[:80]!r}"
                raise DataError(problem, "give it a first line with names of columns, separated by tabs")
            for number, line in enumerate(lines, start=2):
                cells = line.rstrip("\r\n").split("\t")
                if not any(cells):
                    continue
                row = dict(zip(header, [*cells, *[""] * len(header)], strict=False))
                if len(cells) != len(header):
                    row[""] = f"{path}, line {number}: {len(cells)} columns where the first line has {len(header)}"
                yield number, row
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}", "mend or remove it") from error


def _read_phones(path: Path) -> Iterator[tuple[str, tuple[float, float, str]]]:
    """File, and one phone of it with its start and end in seconds."""
    if not path.is_file():
        return
    for line, row in _read_table(path, {"path", "start_s", "end_s", "phone"}):
        start_s, end_s = _number(row["start_s"]), _number(row["end_s"])
        if start_s is None or end_s is None or "" in row:
            problem = f"{path}, line {line}: {row['start_s']!r} to {row['end_s']!r} is no span of time"
            raise DataError(problem, f"mend the line, or remove {path.name}")
        yield row["path"], (start_s, end_s, row["phone"])


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None
