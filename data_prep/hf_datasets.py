"""Hugging Face datasets on a disk: saved ones, folders of parquet, and folders of audio with metadata."""

import csv
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from types import ModuleType

from typing_extensions import override

from data_prep.manifests import Manifests, Row, number_at, objects_at, seconds_of, text_at
from data_prep.recordings import BYTES_PER_S, Recording
from ossicle.core.errors import DataError, MissingExtraError
from ossicle.core.files import read_json

TEXT = ("text", "transcription", "sentence", "transcript", "normalized_text", "raw_transcription")
SPEAKER = ("speaker_id", "speaker", "client_id", "spk_id")
LANGUAGE = ("language", "lang", "locale")
"""Columns that are looked for, the first that is there, where none is named."""

_METADATA = ("metadata.csv", "metadata.jsonl")
_NUMBERED = re.compile(r"^(.+?)-\d{5}-of-\d{5}")
_WORDS = {"train": ("train", "training"), "dev": ("validation", "valid", "dev", "val"), "test": ("test", "testing")}
_ONLY_A_PATH, _USUAL_S = 1000, 5.0  # bytes of a row whose audio lies elsewhere, and its length as a guess
_BYTES_PER_S = 24_000  # of audio in a table, whose kind is not known before it is read


@dataclass(frozen=True)
class TableSource(Recording):
    """A row of a table with a column of audio.

    Args:
        column: The column, or empty where the audio is a file of its own.
        group: The row group in a parquet file; 0 elsewhere.
        row: The row in it.
    """

    column: str = ""
    group: int = 0
    row: int = 0


class HfDatasets(Manifests):
    """A folder that the datasets library knows: what is in it tells its kind.

    - What save_to_disk wrote: dataset_dict.json or state.json, and Arrow files that are read where they lie.
    - Parquet files with a column of audio, as on the Hub: data/train-00000-of-00004.parquet. While rows are loaded,
      the audio of one row group is in memory; datasets writes 100 rows to one.
    - Files of audio with metadata.csv or metadata.jsonl beside them or above, or none. Rows are read one by one.

    Splits are those of the saved dataset, the names of numbered files, or the word train, validation or test, or one
    that means the same, in a path; else all is train. A row whose audio is no bytes but a path is read from there.
    The library itself is not needed; saved datasets and parquet need the extra hf.

    Args:
        input: The folder.
        root: Where relative paths of audio begin; None: in the folder, or that of the metadata.
        splits: New names for the splits.
        audio: The column of audio; None: the first one that holds audio.
        text: The column of the text; None looks for one.
        speaker: The column of the speaker; None looks for one.
        language: The column of the language; None looks for one.
    """

    def __init__(
        self,
        input: str | Path,  # noqa: A002  the name that users write
        root: str | Path | None = None,
        splits: Mapping[str, str | None] | None = None,
        *,
        audio: str | None = None,
        text: str | None = None,
        speaker: str | None = None,
        language: str | None = None,
    ) -> None:
        super().__init__(input, root, splits)
        self.audio_column = audio
        self.columns = {
            "text": (text,) if text else TEXT,
            "speaker": (speaker,) if speaker else SPEAKER,
            "language": (language,) if language else LANGUAGE,
        }

    @override
    def sources(self) -> Iterator[Recording]:
        if (self.input / "dataset_dict.json").is_file():
            names = read_json(self.input / "dataset_dict.json")["splits"]
            for name in names:
                yield from self._saved(self.input / name, name)
        elif (self.input / "state.json").is_file():
            yield from self._saved(self.input, "")
        elif tables := list(self._below(".parquet")):
            for path in tables:
                split = self.split(_split_of(path.relative_to(self.input)))
                if split is not None:
                    yield from self._table(path, split)
        else:
            yield from self._folder()

    @override
    def audio(self, source: Recording) -> Path | bytes:
        if not isinstance(source, TableSource) or not source.column:
            return super().audio(source)
        data, path = _arrow().audio_at(source.path, source.column, source.group, source.row)
        if not data and not path:
            raise DataError(f"{source.name}: the row has no audio", "leave the row out")
        return data or Path(self.place(path, self.input))

    def _below(self, *suffixes: str) -> Iterator[Path]:
        """The files below the folder with some suffixes in order, hidden ones left out; one folder's are in memory."""
        folders = [iter(_entries(self.input))]
        while folders:
            entry = next(folders[-1], None)
            if entry is None:
                folders.pop()
            elif entry.is_dir(follow_symlinks=False):
                folders.append(iter(_entries(entry.path)))
            elif Path(entry.name).suffix.lower() in suffixes and entry.is_file():
                yield Path(entry.path)

    def _saved(self, folder: Path, name: str) -> Iterator[Recording]:
        try:
            state: Row = read_json(folder / "state.json")
        except (OSError, ValueError) as error:
            mend = "save the dataset again: dataset.save_to_disk(DIR)"
            raise DataError(f"{folder / 'state.json'} cannot be read: {error}", mend) from error
        split = self.split(name or text_at(state, "_split") or "train")
        if split is None:
            return
        for file in objects_at(state, "_data_files"):
            yield from self._table(folder / text_at(file, "filename"), split)

    def _table(self, path: Path, split: str) -> Iterator[Recording]:
        names, audio = _arrow().columns(str(path))
        column = self.audio_column or next(iter(audio), "")
        if column not in audio:
            problem = f"{path} has no column {column or 'of audio'} with bytes: its columns are {', '.join(names)}"
            raise DataError(problem, f"name one of audio: corpus.audio={'|'.join(audio) or 'COLUMN'}")
        known = {"duration", *(column for columns in self.columns.values() for column in columns)}
        stem = path.relative_to(self.input).with_suffix("").as_posix()
        for group, row, size, values in _arrow().rows(str(path), column, [name for name in names if name in known]):
            name = f"{stem}/{group:04d}-{row:06d}"
            about_s = size / _BYTES_PER_S if size > _ONLY_A_PATH else _USUAL_S
            seconds = number_at(values, "duration") or about_s
            source = TableSource(name, split, seconds, path=str(path), column=column, group=group, row=row)
            yield self._described(source, values)

    def _folder(self) -> Iterator[Recording]:
        tables = [path for path in self._below(".csv", ".jsonl") if path.name in _METADATA]
        if not tables:
            files = self._below(*BYTES_PER_S)
            first = next(files, None)
            if first is None:
                problem = f"{self.input} holds no saved dataset, parquet files, metadata or audio"
                raise DataError(problem, "point input at a folder of the datasets library")
            rows = ((path.relative_to(self.input).as_posix(), path, {}) for path in chain([first], files))
        else:
            rows = (row for table in tables for row in self._metadata(table))
        for name, path, values in rows:
            split = self.split(_split_of(Path(name)))
            if split is not None:
                problem = text_at(values, "") or ("" if path.is_file() else f"there is no file {path}")
                seconds = number_at(values, "duration") or seconds_of(str(path))
                whole = TableSource(name, split, seconds, path=str(path), problem=problem)
                yield self._described(whole, values)

    def _metadata(self, table: Path) -> Iterator[tuple[str, Path, Row]]:
        """Name, path and row of every file that a table lists; a row's problem is under the empty name."""
        below = table.parent.relative_to(self.input)
        rows = _csv_rows(table, self.lines(table)) if table.suffix == ".csv" else self.rows(table)
        named = ("file_name", *([self.audio_column] if self.audio_column else []), "audio_file_name")
        for number, row, fault in rows:
            listed = text_at(row, *named)
            problem = fault or ("" if listed else f"{table}, line {number} has no file_name")
            name = (below / (listed or f"{table.name} (line {number})")).as_posix()
            yield name, Path(self.place(listed, table.parent)), {**row, "": problem}

    def _described(self, source: TableSource, values: Row) -> TableSource:
        """A source with what its row says."""
        facts = {key: text_at(values, *columns) for key, columns in self.columns.items()}
        return replace(source, **facts)


def _entries(folder: Path | str) -> list["os.DirEntry[str]"]:
    """What is in a folder, in order of names, hidden entries left out."""
    with os.scandir(folder) as found:
        return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _split_of(path: Path) -> str:
    """The split that a file's path tells, as the datasets library reads it."""
    numbered = _NUMBERED.match(path.name)
    if numbered:
        return numbered[1]
    words = re.split(r"[^A-Za-z0-9]+", path.with_suffix("").as_posix().lower())
    return next((split for split, names in _WORDS.items() if any(name in words for name in names)), "train")


def _csv_rows(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Row, str]]:
    """Line number, row and problem of every row of a table in CSV."""
    reader = csv.DictReader(lines, strict=True)
    try:
        for row in reader:
            problem = ""
            if None in row or None in row.values():
                problem = f"{path}, line {reader.line_num}: it has more or fewer columns than the first line"
            yield reader.line_num, {key: value for key, value in row.items() if key is not None}, problem
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is no CSV: {error}", "mend the file") from error


@cache
def _arrow() -> ModuleType:
    try:
        from data_prep import arrow  # noqa: PLC0415  an extra
    except ImportError as error:
        raise MissingExtraError("pyarrow", "hf", "reading a dataset of Hugging Face") from error
    return arrow
