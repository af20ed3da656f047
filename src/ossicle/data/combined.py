"""Several datasets under one numbering of rows: what a reader sees of a mixture."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.files import hash_file, hash_json
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet
from ossicle.data.utterance import Utterance
from ossicle.data.utterances import name_of

_CENTROIDS = "centroids.npy"  # what labels of one clustering have in common
_LOG = logging.getLogger(__name__)


class CombinedColumn:
    """A column of several indexes, read where it is asked for.

    Args:
        columns: The column of each index.
    """

    def __init__(self, columns: list[NDArray[np.generic]]) -> None:
        self.columns = columns
        self.offsets = np.cumsum([0, *(len(column) for column in columns)])

    def __getitem__(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Values at rows."""
        parts = np.searchsorted(self.offsets, rows, side="right") - 1
        values = np.empty(len(rows), dtype=np.int64)
        for part in np.unique(parts).tolist():
            here = parts == part
            values[here] = self.columns[part][rows[here] - self.offsets[part]]
        return values


class CombinedRows:
    """The rows of several indexes, one after another, none of them copied.

    Args:
        parts: The rows of each index.
    """

    def __init__(self, parts: list[NDArray[np.void]]) -> None:
        self.parts = [np.asarray(rows) for rows in parts]  # a memmap costs microseconds at every access
        self.offsets = np.cumsum([0, *(len(rows) for rows in parts)])

    def __len__(self) -> int:
        """Rows of all."""
        return int(self.offsets[-1])

    @overload
    def __getitem__(self, key: str) -> CombinedColumn: ...
    @overload
    def __getitem__(self, key: int) -> np.void: ...
    def __getitem__(self, key: str | int) -> CombinedColumn | np.void:
        """A column by its name, or one row."""
        if isinstance(key, str):
            return CombinedColumn([rows[key] for rows in self.parts])
        part = int(np.searchsorted(self.offsets, key, side="right")) - 1
        return self.parts[part][key - int(self.offsets[part])]


class CombinedIndex:
    """Datasets read as one: row r is row r - offsets[d] of dataset d, the last whose offset is no more than r.

    Args:
        sources: Indexes by the names of their sources.

    Raises:
        ConfigError: There is none, or their rates differ.
    """

    def __init__(self, sources: Mapping[str, DatasetIndex]) -> None:
        if not sources:
            raise ConfigError("data.sources names no dataset", "give at least one: data.sources={NAME:{shards:DIR}}")
        rates = {name: index.rate_hz for name, index in sources.items()}
        if len(set(rates.values())) > 1:
            told = ", ".join(f"{name} {rate}" for name, rate in rates.items())
            raise ConfigError(f"the sources are of different rates: {told} Hz", "prepare all at one rate")
        self.sources = dict(sources)
        self.indexes = tuple(sources.values())
        self.rows = CombinedRows([index.rows for index in self.indexes])
        self.offsets = self.rows.offsets
        self.rate_hz = next(iter(rates.values()))
        self.split = "+".join(sources)
        self.path = self.indexes[0].path
        self.content_hash = hash_json({name: index.content_hash for name, index in sources.items()})

    @property
    def num_utterances(self) -> int:
        """Utterances of all datasets."""
        return len(self.rows)

    def locate(self, row: int) -> tuple[DatasetIndex, int]:
        """The dataset that a row is of, and its row there."""
        part = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return self.indexes[part], row - int(self.offsets[part])

    def audio_bytes(self, row: int) -> int:
        """Size of an utterance's encoded audio."""
        index, local = self.locate(row)
        return index.audio_bytes(local)

    def read_audio_part(self, row: int, first: int, size: int) -> bytes:
        """Bytes of an utterance's encoded audio."""
        index, local = self.locate(row)
        return index.read_audio_part(local, first, size)

    def read_audio(self, row: int) -> bytes:
        """The encoded audio of an utterance."""
        index, local = self.locate(row)
        return index.read_audio(local)

    def read_meta(self, row: int) -> Utterance:
        """What is known of an utterance."""
        index, local = self.locate(row)
        return index.read_meta(local)


class CombinedLabels:
    """Labels of several datasets, made with one clustering.

    Args:
        sets: Labels of each dataset of a :class:`CombinedIndex`, in its order.
        offsets: The number of each dataset's first row.

    Raises:
        ConfigError: The labels are of different clusterings: class 7 of one is not class 7 of another.
    """

    def __init__(self, sets: list[LabelSet], offsets: NDArray[np.int64]) -> None:
        self.sets = sets
        self.offsets = offsets
        first = sets[0]
        for other in sets[1:]:
            if (first.card.num_classes, first.card.clock) != (other.card.num_classes, other.card.clock):
                raise ConfigError(
                    f"the labels in {first.path} and {other.path} differ in clock or number of classes",
                    "label every source with one clustering",
                )
        files = [labels.path / _CENTROIDS for labels in sets]
        absent = [file for file in files if not file.is_file()]
        if absent:
            _LOG.warning("whether the sources' labels are of one clustering is not checked: %s is absent", absent[0])
        elif len({hash_file(file) for file in files}) > 1:
            raise ConfigError(
                "the sources' labels are of different clusterings: " + ", ".join(str(labels.path) for labels in sets),
                "label every source with one clustering",
            )

    @property
    def path(self) -> Path:
        """Where the first of them lies."""
        return self.sets[0].path

    def check(self, index: CombinedIndex, clock: FrameClock, num_classes: int | None = None) -> None:
        """Refuse labels that were made for something else: see :meth:`ossicle.data.labels.LabelSet.check`."""
        for labels, part in zip(self.sets, index.indexes, strict=True):
            labels.check(part, clock, num_classes)

    def crop(self, row: int, start_samples: int, num_frames: int, model_clock: FrameClock) -> NDArray[np.int64]:
        """The labels of a crop, by the mixture's row: see :meth:`ossicle.data.labels.LabelSet.crop`."""
        part = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return self.sets[part].crop(row - int(self.offsets[part]), start_samples, num_frames, model_clock)


def check_labels(
    labels: LabelSet | CombinedLabels,
    index: DatasetIndex | CombinedIndex,
    clock: FrameClock,
    num_classes: int | None = None,
) -> None:
    """Refuse labels that were made for something else: see :meth:`ossicle.data.labels.LabelSet.check`.

    Raises:
        DataError: They are of other data.
        ConfigError: Their clock or number of classes is another, or they are of one dataset and the data of several.
    """
    if isinstance(labels, LabelSet) and isinstance(index, DatasetIndex):
        labels.check(index, clock, num_classes)
        return
    if isinstance(labels, LabelSet) or isinstance(index, DatasetIndex):
        raise ConfigError(f"the labels in {labels.path} are not of {index.path}", "state the labels of each source")
    labels.check(index, clock, num_classes)


def samples_of(index: DatasetIndex | CombinedIndex) -> NDArray[np.uint64] | CombinedColumn:
    """Lengths of utterances by row, without the cost of a memmap at every access."""
    return index.rows["samples"] if isinstance(index, CombinedIndex) else np.asarray(index.rows)["samples"]


def name_in(index: DatasetIndex | CombinedIndex, row: int) -> str:
    """How a bad utterance is called: its source where there are several, its shard, row and id."""
    if isinstance(index, DatasetIndex):
        return name_of(index, row)
    source = list(index.sources)[int(np.searchsorted(index.offsets, row, side="right")) - 1]
    return f"{source}: {name_of(*index.locate(row))}"
