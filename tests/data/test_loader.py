from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from ossicle.core.batch import Batch
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.world import World
from ossicle.data.index import DatasetIndex
from ossicle.data.loader import PlannedBatches, planned_loader
from ossicle.data.plan import Plan
from ossicle.data.reader import BatchReader


def take(loader: DataLoader, count: int) -> list[Batch]:
    return list(islice(iter(loader), count))


def test_any_number_of_workers_gives_the_same_batches(
    ramps: Path,
    ramp_labels: Path,
    reader_of: Callable[..., BatchReader],
    plan_of: Callable[[DatasetIndex], Plan],
    equal: Callable[[Batch, Batch], bool],
) -> None:
    index = DatasetIndex.load(ramps, "train")
    reader = reader_of(index, labels=ramp_labels)
    runs = [take(planned_loader(plan_of(index), reader, start_position=3, workers=w), 20) for w in (0, 1, 2)]
    assert [batch.position for batch in runs[0]] == list(range(3, 23))
    for other in runs[1:]:
        assert all(equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_together_read_what_one_rank_reads(
    ramps: Path,
    workers: int,
    reader_of: Callable[..., BatchReader],
    plan_of: Callable[[DatasetIndex], Plan],
    equal: Callable[[Batch, Batch], bool],
) -> None:
    index = DatasetIndex.load(ramps, "train")
    reader = reader_of(index)
    alone = take(planned_loader(plan_of(index), reader, start_position=5), 12)
    ranks = [
        take(planned_loader(plan_of(index), reader, start_position=5, world=World(r, 3), workers=workers), 4)
        for r in range(3)
    ]
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert all(equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_utterance_does_not_stop_the_stream(
    corrupted: Callable[[list[int]], DatasetIndex],
    tmp_path: Path,
    workers: int,
    reader_of: Callable[..., BatchReader],
    plan_of: Callable[[DatasetIndex], Plan],
) -> None:
    index = corrupted([10])
    log = tmp_path / "log.jsonl"
    batches = take(planned_loader(plan_of(index), reader_of(index, log), workers=workers), 30)
    assert all(bool(batch.waveform_BS.isfinite().all()) for batch in batches)
    assert not any(10 in batch.ids_B.tolist() for batch in batches)
    planned = sum(10 in plan_of(index).batch(g).ids.tolist() for g in range(30))
    assert planned >= 1
    assert len(log.read_text().splitlines()) >= planned
    assert {batch.waveform_BS.shape[1] for batch in batches} == {4_800, 16_000}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_reaches_the_main_process_as_it_was(
    corrupted: Callable[[list[int]], DatasetIndex],
    workers: int,
    reader_of: Callable[..., BatchReader],
    plan_of: Callable[[DatasetIndex], Plan],
) -> None:
    index = corrupted(list(range(0, 60, 2)))
    loader = planned_loader(plan_of(index), reader_of(index, most=0.05), workers=workers)
    with pytest.raises(DataError, match="inputs are bad") as caught:
        take(loader, 100)
    assert "max_bad_fraction" in caught.value.mend


def test_another_sampler_in_the_plans_place_is_noticed(ramps: Path, reader_of: Callable[..., BatchReader]) -> None:
    index = DatasetIndex.load(ramps, "train")
    answer = PlannedBatches(reader_of(index))[7]  # ty: ignore[invalid-argument-type]
    assert isinstance(answer, ConfigError)
    assert "use_distributed_sampler=False" in str(answer)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_come_in_page_locked_memory(
    ramps: Path, reader_of: Callable[..., BatchReader], plan_of: Callable[[DatasetIndex], Plan]
) -> None:
    index = DatasetIndex.load(ramps, "train")
    (batch,) = take(planned_loader(plan_of(index), reader_of(index), workers=1, pin_memory=True), 1)
    assert batch.waveform_BS.is_pinned()
