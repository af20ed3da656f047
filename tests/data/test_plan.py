import tracemalloc
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.lengths import drawn_lengths
from benchmarks.planning import measure
from ossicle.core.errors import ConfigError
from ossicle.core.world import World
from ossicle.data.buckets import Shapes
from ossicle.data.component import Component, Items
from ossicle.data.loader import PlannedSampler
from ossicle.data.plan import BatchSpec, Plan, PlannedSequence

FIELDS = [("shard", "<u4"), ("samples", "<u8")]


def rows_of(samples: list[int], per_shard: int) -> np.ndarray:
    rows = np.zeros(len(samples), dtype=FIELDS)
    rows["samples"] = samples
    rows["shard"] = np.arange(len(samples)) // per_shard
    return rows


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    samples = draw(st.lists(st.integers(5, 60), min_size=3, max_size=80))
    samples[0] = 60
    lengths = tuple(sorted(draw(st.sets(st.integers(8, 55), min_size=1, max_size=4))))
    rows = tuple(draw(st.integers(1, 7)) for _ in lengths)
    per_shard, window = draw(st.integers(1, 20)), draw(st.integers(1, 5))
    return Plan(rows_of(samples, per_shard), Shapes(lengths, rows), seed=draw(st.integers(0, 9)), window_shards=window)


def same(a: BatchSpec, b: BatchSpec) -> bool:
    return (a.position, a.epoch, a.bucket) == (b.position, b.epoch, b.bucket) and np.array_equal(a.ids, b.ids)


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(1, 4))
def test_each_utterance_occurs_once_in_each_epoch_of_its_buckets_stream(plan: Plan, epochs: int) -> None:
    streams: dict[int, list[int]] = {}
    for position in range(plan.first_position(epochs)):
        spec = plan.batch(position)
        assert len(spec.ids) == plan.shapes.rows[spec.bucket]
        streams.setdefault(spec.bucket, []).extend(spec.ids.tolist())
    for bucket, size in enumerate(plan.sizes):
        members = sorted(plan.components[0].items[bucket].tolist())
        assert len(members) == size
        stream = streams.get(bucket, [])
        # all batches that start in these epochs are here, and no batch is here that starts in a later one
        assert epochs * size <= len(stream) < epochs * size + plan.shapes.rows[bucket] or size == 0
        for epoch in range(epochs if size else 0):
            assert sorted(stream[epoch * size : (epoch + 1) * size]) == members


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(1, 5), st.integers(0, 40))
def test_the_ranks_batches_put_together_are_the_sequence_of_one_rank(plan: Plan, size: int, start: int) -> None:
    per_rank = [list(islice(PlannedSampler(plan, start, World(rank, size)), 6)) for rank in range(size)]
    together = [batch for step in zip(*per_rank, strict=True) for batch in step]
    alone = list(islice(PlannedSampler(plan, start, World()), 6 * size))
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))
    assert [batch.position for batch in together] == list(range(start, start + 6 * size))


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(0, 6))
def test_a_position_finds_its_epoch(plan: Plan, epoch: int) -> None:
    first, after = plan.first_position(epoch), plan.first_position(epoch + 1)
    assert plan.epoch(epoch).num_batches == after - first
    assert all(plan.epoch_at(position) == epoch for position in range(first, after))


@pytest.mark.parametrize("epoch", [10**6, 10**9])
def test_a_position_finds_its_epoch_however_far_the_run(epoch: int) -> None:
    plan = Plan(rows_of([10, 11, 20, 21, 22] * 3, 4), Shapes((10, 20), (4, 7)), seed=0, window_shards=1)
    first, after = plan.first_position(epoch), plan.first_position(epoch + 1)
    assert [plan.epoch_at(g) for g in (first - 1, first, after - 1, after)] == [epoch - 1, epoch, epoch, epoch + 1]


def test_a_bucket_with_fewer_utterances_than_rows_fills_its_batches_from_several_epochs() -> None:
    plan = Plan(rows_of([10, 10], 1), Shapes((10,), (5,)), seed=0, window_shards=1)
    stream = np.concatenate([plan.batch(g).ids for g in range(4)])
    assert all(sorted(stream[2 * e : 2 * e + 2].tolist()) == [0, 1] for e in range(10))
    assert Counter(stream.tolist()) == {0: 10, 1: 10}


def test_epochs_and_seeds_differ_in_order_and_equal_plans_agree() -> None:
    rows = rows_of([10] * 500, 20)

    def order(seed: int, epoch: int) -> list[int]:
        return Plan(rows, Shapes((10,), (1,)), seed=seed, window_shards=2).epoch(epoch).orders[0].tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_the_batches_of_alike_buckets_fall_to_all_ranks_alike() -> None:
    rows = rows_of([10, 20] * 2_000, 100)
    plan = Plan(rows, Shapes((10, 20), (10, 10)), seed=0, window_shards=2)
    for rank in range(2):
        buckets = [plan.batch(position).bucket for position in range(rank, 400, 2)]
        assert 60 < sum(buckets) < 140


def test_reads_stay_inside_windows_of_shards_and_are_shuffled_within() -> None:
    rows = rows_of([10] * 1_000, 25)  # 40 shards
    order = Plan(rows, Shapes((10,), (1,)), seed=3, window_shards=4).epoch(2).orders[0]
    shards_WN = rows["shard"][order].reshape(10, 100)
    assert all(len(set(window.tolist())) == 4 for window in shards_WN)
    # shuffled, each window mixes its shards: 25 neighbours of one shard in a row would mean that it is not
    assert all(len(set(window[:25].tolist())) == 4 for window in shards_WN)
    first_shards = [sorted(set(window.tolist())) for window in shards_WN]
    assert first_shards != sorted(first_shards)


def test_places_in_an_epoch_are_uniform() -> None:
    rows = rows_of([10] * 20, 20)
    plan = Plan(rows, Shapes((10,), (1,)), seed=0, window_shards=1)
    epochs = 400
    place_of_first = Counter(plan.epoch(e).orders[0].tolist().index(0) for e in range(epochs))
    statistic = sum((place_of_first[place] - epochs / 20) ** 2 / (epochs / 20) for place in range(20))
    assert statistic < 43.8  # chi-square with 19 degrees of freedom, 0.1 %


def test_buckets_are_interleaved_over_the_epoch() -> None:
    rows = rows_of([10, 20] * 500, 100)
    buckets = Plan(rows, Shapes((10, 20), (10, 10)), seed=0, window_shards=2).epoch(0).buckets
    halves = np.bincount(buckets[:50], minlength=2)
    assert abs(int(halves[0]) - int(halves[1])) < 20


def test_the_interleaving_of_buckets_differs_between_epochs_and_seeds() -> None:
    rows = rows_of([10, 20] * 200, 50)

    def buckets(seed: int, epoch: int) -> list[int]:
        return Plan(rows, Shapes((10, 20), (10, 10)), seed=seed, window_shards=2).epoch(epoch).buckets.tolist()

    assert buckets(0, 0) == buckets(0, 0)
    assert buckets(0, 0) != buckets(0, 1)
    assert buckets(0, 0) != buckets(1, 0)


def test_rare_components_and_the_buckets_of_one_are_heard_in_epochs_of_their_own() -> None:
    # 60 languages of one utterance in each of two shapes, each heard once in ten epochs
    empty, shard = np.zeros(0, dtype=np.uint32), np.zeros(1, dtype=np.uint8)
    items = [np.array([item], dtype=np.uint32) for item in range(120)]
    components = [Component(str(c), items[2 * c : 2 * c + 2], [shard, shard], window_shards=1) for c in range(60)]
    shapes = Shapes((10, 20), (1, 1))

    def heard_in(seed: int) -> np.ndarray:
        plan = PlannedSequence(components, [0.1] * 60, Items(120, empty, empty), shapes, seed=seed)
        drawn = np.stack([plan.drawn(epoch) for epoch in range(11)])
        return np.diff(drawn, axis=0).argmax(0)  # the epoch of each, shape (components, buckets)

    epochs = heard_in(0)
    for bucket in range(2):
        assert np.bincount(epochs[:, bucket], minlength=10).max() < 20
    assert (epochs[:, 0] == epochs[:, 1]).sum() < 20
    assert (epochs[:, 0] == heard_in(1)[:, 0]).sum() < 20


def test_rare_components_are_heard_all_over_an_epoch() -> None:
    empty = np.zeros(0, dtype=np.uint32)
    items = [np.arange(940, dtype=np.uint32), *(np.array([item], dtype=np.uint32) for item in range(940, 1_000))]
    components = [
        Component(str(c), [own], [np.zeros(len(own), dtype=np.uint8)], window_shards=1) for c, own in enumerate(items)
    ]
    plan = PlannedSequence(components, [1.0] * 61, Items(1_000, empty, empty), Shapes((10,), (1,)), seed=0)
    for epoch in (0, 5):
        places = np.flatnonzero(plan.epoch(epoch).orders[0] >= 940)
        assert len(places) == 60
        assert np.histogram(places, bins=4, range=(0, 1_000))[0].min() >= 5


def test_too_short_utterances_never_occur() -> None:
    plan = Plan(rows_of([5, 10, 5, 12, 3], 2), Shapes((10,), (1,)), seed=0, window_shards=1)
    assert {int(plan.batch(g).ids[0]) for g in range(10)} == {1, 3}


def test_a_dataset_of_short_utterances_is_refused() -> None:
    with pytest.raises(ConfigError, match="shortest crop"):
        Plan(rows_of([5, 6], 1), Shapes((10,), (1,)), seed=0, window_shards=1)


def test_only_two_epochs_are_kept() -> None:
    plan = Plan(rows_of([10] * 9, 3), Shapes((10,), (2,)), seed=0, window_shards=1)
    for position in range(60):
        plan.batch(position)
    assert len(plan._epochs) == 2


def test_a_plan_of_many_utterances_takes_few_bytes_of_each() -> None:
    rows = np.zeros(300_000, dtype=[*FIELDS, ("language", "<u2")])
    rows["samples"] = drawn_lengths(len(rows))
    rows["shard"] = np.arange(len(rows)) // 2_000
    rows["language"] = np.arange(len(rows)) % 7
    tracemalloc.start()
    records = {record["what"]: record for record in measure(rows, languages=7, alpha=0.5, num_shapes=18)}
    held, peak = (size / len(rows) for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    assert peak < 80  # numpy alone: a list of their numbers and a batch of them would take more than that
    assert held < 2
    assert records["a batch of epoch 1,000,000"]["seconds"] < 5
