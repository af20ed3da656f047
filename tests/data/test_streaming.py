"""Shards without an index: orders, crops, shapes and counts, each by itself."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ossicle.data.buckets import Shapes
from ossicle.data.index import DatasetIndex
from ossicle.data.ledger import Progress
from ossicle.data.sources import EndlessShards, Sources
from ossicle.data.stream import StreamData, first_lengths, shapes_for
from tests.data.test_stream import as_rank, id_of, members_of, shards_of, stream_of

Heard = list[tuple[int, int, int]]
"""Utterance, start and length of each crop."""


def one_by_one(url: str, **changes: object) -> StreamData:
    """Batches of one crop of one shard, all of which is shuffled together."""
    return stream_of([url], batch_s=0.3, shuffle=100, **changes)


def heard_of(data: StreamData, number: int) -> Heard:
    batches = islice(iter(data.train_dataloader()), number)
    return [(int(b.ids_B[0]), int(b.starts_B[0]), b.waveform_BS.shape[1]) for b in batches]


@pytest.fixture
def shard(ramps: Path) -> tuple[str, dict[int, int]]:
    """The first shard, and the length of each of its utterances."""
    index, url = DatasetIndex.load(ramps, "train"), shards_of(ramps)[0]
    samples = index.rows["samples"][index.rows["shard"] == 0].astype(int).tolist()
    return url, dict(zip([id_of(url, name) for name in members_of(url)], samples, strict=True))


def test_the_utterances_of_one_shard_come_in_an_order_of_epoch_and_seed(shard: tuple[str, dict[int, int]]) -> None:
    url, samples = shard
    size = len(samples)
    ids = [utterance for utterance, _, _ in heard_of(one_by_one(url), 2 * size)]
    assert sorted(ids[:size]) == sorted(ids[size:]) == sorted(samples)
    assert ids[:size] != ids[size:]
    assert ids[:size] != [utterance for utterance, _, _ in heard_of(one_by_one(url, seed=6), size)]


def test_crops_differ_between_epochs_utterances_and_seeds_and_reach_every_place(
    shard: tuple[str, dict[int, int]],
) -> None:
    url, samples = shard
    size = len(samples)
    data, other = one_by_one(url), one_by_one(url, seed=6)
    data.shapes = other.shapes = Shapes((4_800, 11_520), (1, 1))
    starts: dict[int, list[int]] = {}
    places: dict[int, int] = {}
    for utterance, start, length in heard_of(data, 30 * size):  # as many shards in a row, every one of them good
        starts.setdefault(utterance, []).append(start)
        places[utterance] = (samples[utterance] - length) // 320 + 1
    assert any(1 < number <= 6 for number in places.values())
    for utterance, number in places.items():
        assert set(starts[utterance]) <= set(range(0, 320 * number, 320))
        assert len(set(starts[utterance])) >= min(number, 6)
    # as shares of their range, starts of two utterances in one epoch have nothing to do with each other
    shares = [start[0] / max(start) for start in starts.values() if max(start) > 3_200]
    assert max(shares) - min(shares) > 0.2
    assert any(start != starts[utterance][0] for utterance, start, _ in heard_of(other, size))
    assert data.quarantine.num_seen >= 30 * size  # what is good counts too
    assert data.quarantine.num_bad == 0


def test_the_sequence_of_shards_depends_on_the_seed_and_is_the_same_from_wherever_it_is_begun() -> None:
    urls = tuple(f"shard-{number}.tar" for number in range(7))
    whole = list(islice(EndlessShards(urls, 5, 0), 30))
    assert [place.url for place in whole[:7]] != [place.url for place in islice(EndlessShards(urls, 6, 0), 7)]
    for first in (3, 7, 16):
        assert list(islice(EndlessShards(urls, 5, first), 10)) == whole[first : first + 10]
    sources = Sources(urls, max_member_bytes=1, storage=None, cache=None)
    for floor, streams, begins in ((7, 3, 6), (6, 3, 6), (2, 4, 0)):
        assert next(iter(sources.endless(5, floor, streams))) == whole[begins]


def test_what_was_measured_stands_for_all_that_is_there(ramps: Path) -> None:
    urls = shards_of(ramps)
    sources = Sources(urls, max_member_bytes=10**8, storage=None, cache=None)
    lengths, part = first_lengths(sources, 5, 16_000, 3)
    assert (len(lengths), part) == (3, pytest.approx(1 / len(urls)))
    everything, whole = first_lengths(sources, 5, 16_000, 10**6)
    assert (len(everything), whole) == (60, 1.0)
    arguments = {"max_crop_s": 2.0, "min_crop_s": 0.5, "num_shapes": 3, "batch_s": 8.0, "rate_hz": 16_000}
    samples = np.array([16_000] * 4 + [32_000] * 3)
    # three of 2 s fill no batch of four, nor all seven one of eight; where they are a tenth of all, they do. The
    # shortest crop is always there
    assert shapes_for(samples, 1.0, **arguments).lengths == (8_000,)
    assert shapes_for(samples, 0.1, **arguments).lengths == (8_000, 16_000, 32_000)


def test_epochs_are_counted_over_all_ranks(ramps: Path) -> None:
    ahead = {"floor": 6, "beyond": [9], "begun": []}
    assert [Progress(ahead, rank, 2).num_finished() for rank in (0, 1)] == [3, 4]  # ty: ignore[invalid-argument-type]
    urls = shards_of(ramps)
    data = stream_of(urls)
    state = data.state_dict() | {"streams": {"floor": 2 * len(urls), "beyond": [], "begun": []}}
    for rank in (0, 1):
        data = stream_of(urls)
        data.load_state_dict(state)  # ty: ignore[invalid-argument-type]
        assert data.epoch() == 2
        with as_rank(rank, 2):
            data.train_dataloader()
            assert data.epoch() == pytest.approx(2, abs=1 / len(urls))
