"""Shards without an index: orders, crops, shapes and counts, each by itself."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ossicle.data.index import DatasetIndex
from ossicle.data.ledger import Progress
from ossicle.data.sources import EndlessShards, Sources
from ossicle.data.stream import StreamData, first_lengths, shapes_for
from tests.data.test_stream import as_rank, shards_of, stream_of

Heard = list[tuple[int, int, int]]
"""Utterance, start and length of each crop."""


def one_by_one(url: str, **changes: object) -> StreamData:
    """Batches of one crop of one shard, all of which is shuffled together."""
    return stream_of([url], batch_s=0.3, shuffle=100, **changes)


def heard_of(data: StreamData, number: int) -> Heard:
    batches = islice(iter(data.train_dataloader()), number)
    return [(int(b.ids_B[0]), int(b.starts_B[0]), b.waveform_BS.shape[1]) for b in batches]


@pytest.fixture
def shard(ramps: Path) -> tuple[str, dict[str, int]]:
    """The first shard, and how many utterances it has of which lengths."""
    index = DatasetIndex.load(ramps, "train")
    samples = index.rows["samples"][index.rows["shard"] == 0].astype(int).tolist()
    return shards_of(ramps)[0], {"utterances": len(samples), "longest": max(samples)}


def test_the_utterances_of_one_shard_come_in_an_order_of_epoch_and_seed(shard: tuple[str, dict[str, int]]) -> None:
    url, about = shard
    size = about["utterances"]
    ids = [utterance for utterance, _, _ in heard_of(one_by_one(url), 2 * size)]
    assert sorted(ids[:size]) == sorted(ids[size:]) == sorted(set(ids))
    assert ids[:size] != ids[size:]
    assert ids[:size] != [utterance for utterance, _, _ in heard_of(one_by_one(url, seed=6), size)]


def test_crops_differ_between_epochs_utterances_and_seeds_and_reach_every_place(
    shard: tuple[str, dict[str, int]],
) -> None:
    url, about = shard
    size = about["utterances"]
    data = one_by_one(url)
    found = heard_of(data, 30 * size)  # as many shards in a row, every one of them good
    starts: dict[int, list[int]] = {}
    for utterance, start, _ in found:
        starts.setdefault(utterance, []).append(start)
    length = max(length for _, _, length in found)
    longest = max(starts, key=lambda utterance: max(starts[utterance]))
    places = (about["longest"] - length) // 320 + 1
    assert set(starts[longest]) <= set(range(0, 320 * places, 320))
    assert len(set(starts[longest])) > min(places, 30) / 3
    assert max(starts[longest]) > 320 * places * 0.8
    assert min(starts[longest]) < 320 * places * 0.2
    few = {u: set(s) for u, s in starts.items() if 0 < max(s) <= 1_600}
    assert all(found == set(range(0, max(found) + 1, 320)) for found in few.values())
    # as shares of their range, starts of two utterances in one epoch have nothing to do with each other
    shares = [start[0] / max(start) for start in starts.values() if max(start) > 3_200]
    assert max(shares) - min(shares) > 0.2
    other = {utterance: start for utterance, start, _ in heard_of(one_by_one(url, seed=6), size)}
    assert any(other[utterance] != start[0] for utterance, start in starts.items())
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
