"""Rows and audio of tables that the datasets library wrote, by pyarrow: parquet, and Arrow's streams on the disk."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import ipc

from ossicle.core.errors import DataError

_ROWS = 1000  # read at once

Values = dict[str, object]
"""A row without its audio."""


def columns(path: str) -> tuple[list[str], list[str]]:
    """Names of all columns, and of those that hold audio: bytes with a path.

    Raises:
        DataError: The file cannot be read.
    """
    schema = _parquet(path).schema_arrow if path.endswith(".parquet") else _table(path).schema
    names = list(schema.names)
    kinds = {name: schema.field(name).type for name in names}
    return names, [
        name for name, kind in kinds.items() if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    ]


def rows(path: str, audio: str, wanted: Sequence[str]) -> Iterator[tuple[int, int, int, Values]]:
    """Row group, row in it, about how many bytes of audio, and wanted values of every row, without reading audio.

    Args:
        path: A parquet file, or Arrow's stream, which has one group.
        audio: The column of audio.
        wanted: Columns of values.

    Raises:
        DataError: The file cannot be read.
    """
    if not path.endswith(".parquet"):
        table = _table(path)
        sizes = pc.call_function("binary_length", [table.flatten().column(f"{audio}.bytes")])
        for row, values in enumerate(_values(table.select(wanted).to_batches(_ROWS), table.num_rows, wanted)):
            yield 0, row, sizes[row].as_py() or 0, values
        return
    file = _parquet(path)
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        parts = [about.column(i) for i in range(about.num_columns)]
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == audio)
        batches = file.iter_batches(_ROWS, row_groups=[group], columns=list(wanted)) if wanted else iter(())
        for row, values in enumerate(_values(batches, about.num_rows, wanted)):
            yield group, row, size // about.num_rows, values


def audio_at(path: str, audio: str, group: int, row: int) -> tuple[bytes | None, str | None]:
    """The audio of a row: its bytes, and its path, where there are such.

    Raises:
        DataError: The file cannot be read.
    """
    column = _group(path, audio, group) if path.endswith(".parquet") else _table(path).column(audio)
    value = column[row].as_py() or {}
    return value.get("bytes"), value.get("path")


def _values(
    batches: Iterator[pa.RecordBatch] | list[pa.RecordBatch], num_rows: int, wanted: Sequence[str]
) -> Iterator[Values]:
    if not wanted:
        yield from ({} for _ in range(num_rows))
    for batch in batches if wanted else ():
        yield from batch.to_pylist()


@lru_cache(maxsize=2)
def _parquet(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}", "fetch it again") from error


@lru_cache(maxsize=1)
def _group(path: str, column: str, group: int) -> pa.ChunkedArray:
    """The audio of a row group; that of the last one is kept, since rows are loaded in their order."""
    try:
        return _parquet(path).read_row_group(group, columns=[column]).column(column)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged: {error}", "fetch it again") from error


@lru_cache(maxsize=2)
def _table(path: str) -> pa.Table:
    """A table in the format of Arrow's streams, mapped into memory and not read."""
    try:
        return ipc.open_stream(pa.memory_map(path)).read_all()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Arrow: {error}", "save the dataset again") from error
