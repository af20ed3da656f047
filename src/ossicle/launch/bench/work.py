"""The work of a data bench, the same for every system: batches of crops of one length out of one prepared split."""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ossicle.data.index import DatasetIndex

PREFETCH = 4  # batches that a worker of every system may have read ahead


@dataclass(frozen=True, slots=True)
class Work:
    """What a system is asked for.

    Args:
        shards: Directory of a prepared dataset.
        split: Its split.
        rate_hz: Samples a second.
        crop_samples: Length of a crop; shorter utterances are left out.
        rows: Crops in a batch.
        workers: Processes that read; 0 reads in the system's own.
        seed: Seeds what is random.
        scratch: A folder for files that a system needs before it can begin.
        augmentation: A config of ``ossicle.augmentation``, for Ossicle's stage of that name.
        device: Where batches go.
    """

    shards: Path
    split: str
    rate_hz: int
    crop_samples: int
    rows: int
    workers: int
    seed: int
    scratch: Path
    augmentation: dict[str, object]
    device: str = "cpu"

    def alone(self) -> "Work":
        """The same work without workers."""
        return replace(self, workers=0)

    def index(self) -> DatasetIndex:
        """The split."""
        return DatasetIndex.load(self.shards, self.split)

    def shard_names(self) -> list[str]:
        """The tars, as a peer is given them."""
        return [str(path) for path in self.index().shard_paths]

    def audio_suffix(self) -> str:
        """What the names of audio members end with."""
        with tarfile.open(self.shard_names()[0]) as tar:
            suffixes = (member.name.rpartition(".")[2] for member in tar)
            return next(suffix for suffix in suffixes if suffix != "json")

    @property
    def crop_s(self) -> float:
        """Length of a crop in seconds."""
        return self.crop_samples / self.rate_hz


System = Callable[[Work], Iterator[Tensor]]
"""Yields batches without end: float32, shape (rows, crop_samples).

Raises:
    MissingExtraError: A package that it needs is not installed.
"""
