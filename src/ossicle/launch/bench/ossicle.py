"""Ossicle's own loader, and the same with a clock on each of its stages."""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info
from typing_extensions import override

from ossicle.augmentation.base import Augmentation
from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.data.buckets import choose_shapes
from ossicle.data.crops import Crop
from ossicle.data.loader import planned_loader
from ossicle.data.plan import BatchSpec, Plan
from ossicle.data.quarantine import Quarantine
from ossicle.data.reader import BatchReader
from ossicle.launch.bench.work import PREFETCH, Work

STAGES = ("read", "crop", "decode", "collate", "augment", "other")
"""Reading bytes; finding the crop in them; decoding it into its row; making the batch; changing it; all the rest."""

_OTHER = STAGES.index("other")
_CLOCK = FrameClock().then(400, 320)
_WINDOW_SHARDS = 8
_MAX_BAD_FRACTION = 0.01


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage took.

    Args:
        name: One of STAGES.
        wall_s: Time spent in it, summed over workers.
        cpu_s: Processor time spent in it, summed over workers.
    """

    name: str
    wall_s: float
    cpu_s: float


class StageTimes:
    """Sums by stage in memory that worker processes share, a row for each of them and one for the main process.

    Args:
        workers: How many workers there are.
    """

    def __init__(self, workers: int) -> None:
        self.seconds = torch.zeros(workers + 1, len(STAGES), 2, dtype=torch.float64).share_memory_()

    def mine(self) -> NDArray[np.float64]:
        """The sums of this process, shape (stages, 2): wall time and processor time."""
        worker = get_worker_info()
        return self.seconds[-1 if worker is None else worker.id].numpy()

    def stages(self) -> list[Stage]:
        """All sums."""
        return [Stage(name, *sums) for name, sums in zip(STAGES, self.seconds.sum(dim=0).tolist(), strict=True)]


class _Clock:
    """Adds the time since the last switch to the stage that was on: a stage within another counts for itself alone."""

    def __init__(self, seconds: NDArray[np.float64]) -> None:
        self.seconds = seconds
        self._on: int | None = None
        self._since = (0.0, 0.0)

    def switch(self, stage: int | None) -> int | None:
        """Go over to a stage, or to none; returns the one before."""
        now = (time.perf_counter(), time.thread_time())
        before = self._on
        if before is not None:
            self.seconds[before] += np.subtract(now, self._since)
        self._on, self._since = stage, now
        return before

    @contextmanager
    def on(self, name: str) -> Generator[None]:
        """Count the block for a stage."""
        before = self.switch(STAGES.index(name))
        try:
            yield
        finally:
            self.switch(before)


class TimedReader(BatchReader):
    """A BatchReader that notes what its stages take.

    Its code is the reader's own, with a clock around each step: where nobody asks, the reader has no clock to pass by.

    Attributes:
        times: Takes the sums; set before the first batch is read.
    """

    times: StageTimes
    _clock: _Clock

    @override
    def read(self, spec: BatchSpec) -> Batch:
        self._clock = _Clock(self.times.mine())
        with self._clock.on("other"):
            return super().read(spec)

    @override
    def _cut(self, row: int, start: int, length: int) -> Crop:
        with self._clock.on("crop"):
            return super()._cut(row, start, length)

    @override
    def _fetch(self, row: int, first: int, size: int) -> bytes:
        with self._clock.on("read"):
            return super()._fetch(row, first, size)

    @override
    def _decode(self, crop: Crop, out_S: NDArray[np.float32]) -> None:
        with self._clock.on("decode"):
            super()._decode(crop, out_S)

    @override
    def _collate(
        self, spec: BatchSpec, waveform_BS: NDArray[np.float32], ids_B: NDArray[np.int64], starts_B: NDArray[np.int64]
    ) -> Batch:
        with self._clock.on("collate"):
            return super()._collate(spec, waveform_BS, ids_B, starts_B)


def batches(work: Work) -> Iterator[Tensor]:
    """Planned batches, augmented where the work says so, as pretraining gets them."""
    augmentation = _augmentation(work)
    for batch in _planned(work, BatchReader):
        yield augmentation(batch.to(torch.device(work.device)), seed=work.seed).waveform_BS


def stages(work: Work, seconds: float) -> tuple[float, list[Stage]]:
    """Read for some time with a clock on every stage.

    Args:
        work: What to read.
        seconds: For how long; what passes before the first batches are here does not count.

    Returns:
        Seconds of audio that were read, and what each stage took.
    """
    times = StageTimes(work.workers)
    augmentation = _augmentation(work)
    source = _planned(work, TimedReader, times)
    for _ in range(2 + PREFETCH * work.workers):
        next(source)
    times.seconds.zero_()
    clock = _Clock(times.mine())
    device = torch.device(work.device)
    began, began_cpu, num_crops = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < began + seconds:
        batch = next(source).to(device)
        with clock.on("augment"):
            augmentation(batch, seed=work.seed)
            if device.type == "cuda":
                torch.cuda.synchronize()
        num_crops += len(batch.waveform_BS)
    if work.workers == 0:  # planning and the loader itself; beside workers, nobody waits for them
        spent = times.seconds.sum(dim=(0, 1))
        rest = (time.perf_counter() - began - spent[0], time.process_time() - began_cpu - spent[1])
        times.mine()[_OTHER] += rest
    return num_crops * work.crop_s, times.stages()


def _planned(work: Work, kind: type[BatchReader], times: StageTimes | None = None) -> Iterator[Batch]:
    index = work.index()
    shapes = choose_shapes(
        index.rows["samples"],
        max_crop_s=work.crop_s,
        min_crop_s=work.crop_s,
        num_shapes=1,
        batch_s=work.rows * work.crop_s,
        rate_hz=index.rate_hz,
    )
    reader = kind(index, shapes, seed=work.seed, model_clock=_CLOCK, quarantine=Quarantine(None, _MAX_BAD_FRACTION))
    if isinstance(reader, TimedReader):
        assert times is not None
        reader.times = times
    plan = Plan(index.rows, shapes, seed=work.seed, window_shards=_WINDOW_SHARDS)
    yield from planned_loader(plan, reader, workers=work.workers, pin_memory=work.device == "cuda")


def _augmentation(work: Work) -> Augmentation:
    from hydra.utils import instantiate

    augmentation = instantiate(work.augmentation, _convert_="all")(clock=_CLOCK)
    assert isinstance(augmentation, Augmentation)
    augmentation.load(torch.device(work.device))
    return augmentation
