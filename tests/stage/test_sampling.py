from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare

from ossicle.core.errors import DataError
from ossicle.core.peers import Alone
from ossicle.data.index import DatasetIndex
from ossicle.stage.frames import num_frames
from ossicle.stage.sampling import SPREAD, Reservoir, draw_sample, drawn_utterances, frame_keys, utterance_keys
from tests.stage.features import CLOCK, FEATURES, Counting


@pytest.fixture
def index(synthetic_dataset: Path) -> DatasetIndex:
    return DatasetIndex.load(synthetic_dataset, "train")


def test_keys_are_distinct_and_depend_on_seed_purpose_and_place_alone() -> None:
    keys = np.concatenate([frame_keys(0, "a", row, 3_000) for row in range(300)])
    assert len(np.unique(keys)) == len(keys)
    assert np.array_equal(frame_keys(0, "a", 7, 10), frame_keys(0, "a", 7, 3_000)[:10])
    assert not np.array_equal(frame_keys(0, "a", 7, 10), frame_keys(1, "a", 7, 10))
    assert not np.array_equal(frame_keys(0, "a", 7, 10), frame_keys(0, "b", 7, 10))
    spread = np.histogram(keys.astype(np.float64) / 2.0**63, bins=100, range=(-1, 1))[0]
    assert chisquare(spread).pvalue > 1e-4
    assert abs(np.corrcoef(keys[1:].astype(float), keys[:-1].astype(float))[0, 1]) < 0.01


def test_the_reservoir_holds_the_smallest_keys_whatever_the_order_and_the_batches() -> None:
    draws = np.random.default_rng(0)
    keys = draws.permutation(np.arange(-5_000, 5_000))
    frames = torch.from_numpy(np.stack([keys, 2 * keys], 1)).float()
    reservoir = Reservoir(300)
    for part in np.array_split(np.arange(len(keys)), 37):
        reservoir.offer(keys[part], frames[part])
        assert sum(len(kept) for kept in reservoir._frames) <= 1.25 * 300 + 1
    found, kept = reservoir.sample(Alone())
    assert found.tolist() == list(range(-5_000, -4_700))
    assert torch.equal(kept, torch.tensor([[k, 2.0 * k] for k in range(-5_000, -4_700)]))


def test_all_frames_are_kept_where_they_are_fewer_than_wanted() -> None:
    reservoir = Reservoir(100)
    reservoir.offer(np.array([3, -1, 2]), torch.tensor([[3.0], [-1.0], [2.0]]))
    keys, frames = reservoir.sample(Alone())
    assert keys.tolist() == [-1, 2, 3]
    assert frames[:, 0].tolist() == [-1, 2, 3]
    with pytest.raises(DataError, match="no frame"):
        Reservoir(100).sample(Alone())


def test_every_frame_is_drawn_as_often_as_any_other() -> None:
    # 20 utterances of 5 to 24 frames, 10 frames drawn from as many utterances as hold 16 times those
    frames_N = np.arange(5, 25)
    hits = [np.zeros(count) for count in frames_N]
    rounds = 4_000
    for seed in range(rounds):
        rows = drawn_utterances(frames_N, 10, seed)
        keys = np.concatenate([frame_keys(seed, "label frames", row, frames_N[row]) for row in rows])
        owner = np.repeat(rows, frames_N[rows])
        place = np.concatenate([np.arange(frames_N[row]) for row in rows])
        for chosen in np.argsort(keys)[:10]:
            hits[owner[chosen]][place[chosen]] += 1
    counts = np.concatenate(hits)
    expected = rounds * 10 / frames_N.sum()
    assert counts.sum() == 10 * rounds
    assert counts.min() > binom.ppf(1e-6, rounds, 0.85 * expected / rounds)
    assert counts.max() < binom.ppf(1 - 1e-6, rounds, 1.15 * expected / rounds)


def test_the_sample_reads_few_utterances_and_takes_just_what_is_asked(index: DatasetIndex) -> None:
    frames_N = num_frames(index, CLOCK)
    assert frames_N.tolist() == [CLOCK.num_frames(int(samples)) for samples in index.rows["samples"]]
    wanted = int(frames_N.sum()) // 80
    counting = Counting()
    sample = draw_sample(counting.features(), index, wanted, 0, Alone())
    assert len(sample) == wanted
    rows = drawn_utterances(frames_N, wanted, 0)
    assert counting.utterances == len(rows) < index.num_utterances / 2
    assert SPREAD * wanted <= frames_N[rows].sum() < SPREAD * wanted + frames_N.max()
    everything = draw_sample(FEATURES, index, 10 * int(frames_N.sum()), 0, Alone())
    assert len(everything) == frames_N.sum()


def test_the_sample_is_decided_by_the_seed_and_not_by_the_batches(index: DatasetIndex) -> None:
    first, again, other = (
        draw_sample(Counting().features(batch_s), index, 500, seed, Alone())
        for batch_s, seed in ((20, 3), (1e-3, 3), (20, 4))
    )
    torch.testing.assert_close(first, again, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(first, other, atol=0.1)


def test_utterances_too_short_for_a_frame_are_not_drawn() -> None:
    frames_N = np.array([0, 5, 0, 7, 3])
    assert drawn_utterances(frames_N, 1_000, 0).tolist() == [1, 3, 4]
    assert len(np.unique(utterance_keys(0, "x", 10_000))) == 10_000
