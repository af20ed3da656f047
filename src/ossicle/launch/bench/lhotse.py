"""Lhotse's dynamic bucketing, over the tars as they stand and over the same audio unpacked to files."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from ossicle.core.errors import MissingExtraError
from ossicle.core.seeds import numpy_generator
from ossicle.launch.bench.work import PREFETCH, Work

if TYPE_CHECKING:
    from lhotse import CutSet, Recording
    from lhotse.cut import Cut

_BUFFER = 4  # batches among which the sampler chooses: whole recordings lie in memory where they come out of tars


def shard_batches(work: Work) -> Iterator[Tensor]:
    """Recordings out of the tars one after another, each in memory while it is read."""
    index = work.index()
    _import()
    from lhotse import Recording

    def recordings() -> Iterator["Recording"]:
        for row in range(index.num_utterances):
            if int(index.rows[row]["samples"]) >= work.crop_samples:
                yield Recording.from_bytes(index.read_audio(row), recording_id=f"row-{row}")

    return _batches(work, recordings)


def file_batches(work: Work) -> Iterator[Tensor]:
    """Recordings that were unpacked beforehand: files of their own, in which Lhotse seeks to the crop."""
    index = work.index()
    _import()
    from lhotse import Recording

    work.scratch.mkdir(parents=True, exist_ok=True)
    listed: list[Recording] = []
    for row in range(index.num_utterances):
        if int(index.rows[row]["samples"]) >= work.crop_samples:
            path = _unpacked(work.scratch / f"row-{row}.audio", index.read_audio(row))
            listed.append(Recording.from_file(path, recording_id=f"row-{row}"))
    return _batches(work, lambda: iter(listed))


def _import() -> None:
    try:
        import lhotse  # noqa: F401
    except ImportError as error:
        # without the package urllib3, which lhotse does not declare, its import fails too
        raise MissingExtraError(error.name or "lhotse", "bench", "the peer lhotse") from error


def _unpacked(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


class _Crops:
    """One random crop of each recording, over and over, as a lazy set of cuts."""

    def __init__(self, work: Work, recordings: Callable[[], Iterator["Recording"]]) -> None:
        self.work = work
        self.recordings = recordings

    def __iter__(self) -> Iterator["Cut"]:
        draw = numpy_generator(self.work.seed, "lhotse")
        number = 0
        while True:
            for recording in self.recordings():
                start = int(draw.integers(recording.num_samples - self.work.crop_samples + 1)) / recording.sampling_rate
                cut = recording.to_cut().truncate(offset=start, duration=self.work.crop_s)
                yield cut.with_id(f"crop-{number}")
                number += 1


class _Audio(Dataset[Tensor]):
    """Lhotse's own collation of a mini-batch of cuts."""

    @override
    def __getitem__(self, index: "CutSet") -> Tensor:
        from lhotse.dataset.collation import collate_audio

        return collate_audio(index)[0]


def _batches(work: Work, recordings: Callable[[], Iterator["Recording"]]) -> Iterator[Tensor]:
    from lhotse import CutSet
    from lhotse.dataset import DynamicBucketingSampler, IterableDatasetWrapper

    # it fears for batches of many short cuts; cuts are of one length here
    warnings.filterwarnings("ignore", message="Your 'buffer_size' setting")
    sampler = DynamicBucketingSampler(
        CutSet(_Crops(work, recordings)),
        max_cuts=work.rows,
        max_duration=work.rows * work.crop_s + 1,
        duration_bins=[work.crop_s / 2],
        shuffle=True,
        drop_last=True,
        buffer_size=_BUFFER * work.rows,
        seed=work.seed,
    )
    loader = DataLoader(
        IterableDatasetWrapper(_Audio(), sampler),
        batch_size=None,
        num_workers=work.workers,
        prefetch_factor=PREFETCH if work.workers else None,
    )
    yield from loader
