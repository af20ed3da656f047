"""Planned batches through torch's DataLoader: the main process plans, workers read."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.core.errors import ConfigError, DataError, OssicleError
from ossicle.core.world import World
from ossicle.data.orphans import end_with_parent
from ossicle.data.plan import BatchSpec, PlannedSequence
from ossicle.data.reader import BatchReader

_T = TypeVar("_T")
_LOST = "DataLoader worker"  # how torch begins to say that a worker is gone


class PlannedSampler(Sampler[BatchSpec]):
    """One rank's share of the endless global sequence: places start + rank, start + rank + size, and so on.

    Args:
        plan: The global sequence.
        start_position: Global batches that were consumed before; it need not divide by the world's size.
        world: This process's place.
    """

    def __init__(self, plan: PlannedSequence, start_position: int, world: World) -> None:
        self.plan = plan
        self.start_position = start_position
        self.world = world

    @override
    def __iter__(self) -> Iterator[BatchSpec]:
        position = self.start_position + self.world.rank
        while True:
            yield self.plan.batch(position)
            position += self.world.size


class PlannedBatches(Dataset[Batch | OssicleError]):
    """A dataset whose keys are planned batches.

    An error travels as an item: DataLoader would rebuild it from its text alone, and lose what it is.

    Args:
        reader: Reads a batch.
    """

    def __init__(self, reader: BatchReader) -> None:
        self.reader = reader

    @override
    def __getitem__(self, index: BatchSpec) -> Batch | OssicleError:
        if not isinstance(index, BatchSpec):
            return ConfigError(
                f"another sampler took the plan's place: the loader was asked for {index!r}",
                "give the Trainer use_distributed_sampler=False",
            )
        try:
            return self.reader.read(index)
        except OssicleError as error:
            return error


class PlannedLoader(DataLoader[Batch | OssicleError]):
    """A DataLoader that raises the errors that workers met, as they were.

    Attributes:
        given: Is shown each batch as it leaves the loader, still on the host.
    """

    given: Callable[[Batch], None] | None = None

    @override
    def __iter__(self) -> Iterator[Batch]:  # ty: ignore[incompatible-method-override]  a generator is all that is used
        for batch in raised_as_they_were(super().__iter__()):
            if self.given is not None:
                self.given(batch)
            yield batch


def raised_as_they_were(items: Iterator[_T | OssicleError]) -> Iterator[_T]:
    """What a DataLoader gives, up to an error that travelled as an item, which is raised.

    Raises:
        OssicleError: A worker met it.
        DataError: A worker was lost.
    """
    while True:
        with told_of_lost_workers():
            try:
                item = next(items, None)
            except (ConnectionError, EOFError) as error:  # a batch is handed over by a process that is gone
                raise RuntimeError(f"{_LOST} is gone: {error}") from error
        if item is None:
            return
        if isinstance(item, OssicleError):
            raise item
        yield item


@contextmanager
def told_of_lost_workers() -> Generator[None]:
    """Say what a lost reading process means. torch raises its error wherever the main process is at that moment.

    Raises:
        DataError: A worker was killed or crashed.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(_LOST):
            raise
        raise DataError(
            f"a reading process was lost: {str(error).splitlines()[0]}",
            "start the same command again: it goes on from the last checkpoint and misses nothing. Where the system had"
            " no memory left (dmesg tells), lower data.workers; where /dev/shm is full, enlarge it",
        ) from error


def planned_loader(
    plan: PlannedSequence,
    reader: BatchReader,
    *,
    start_position: int = 0,
    world: World | None = None,
    workers: int = 0,
    pin_memory: bool = False,
    given: Callable[[Batch], None] | None = None,
) -> PlannedLoader:
    """An endless loader of one rank's batches; batches are the same with any number of workers.

    Args:
        plan: The global sequence of batches.
        reader: Reads a batch.
        start_position: Global batches that were consumed before.
        world: This process's place, or None where it is alone.
        workers: Processes that read ahead; 0 reads in this one.
        pin_memory: Whether batches go to page-locked memory, for copies to a GPU.
        given: Is shown each batch as it leaves the loader, or None.
    """
    loader = PlannedLoader(
        PlannedBatches(reader),
        sampler=PlannedSampler(plan, start_position, world or World()),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=end_with_parent,
    )
    loader.given = given
    return loader
