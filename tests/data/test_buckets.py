from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.lengths import librispeech_lengths
from benchmarks.shapes import alternatives
from ossicle.core.errors import ConfigError
from ossicle.data.buckets import (
    Pieces,
    Shapes,
    choose_shapes,
    length_histogram,
    optimal_starts,
    pieces_of,
    shapes_of,
)


def excess(values: np.ndarray, counts: np.ndarray, starts: tuple[int, ...]) -> int:
    group = np.searchsorted(np.asarray(starts), np.arange(len(values)), side="right") - 1
    return int(((values - values[np.asarray(starts)[group]]) * counts).sum())


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.integers(1, 60), st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 6))
def test_the_cut_away_audio_is_the_least_that_brute_force_finds(histogram: dict[int, int], num_groups: int) -> None:
    values = np.array(sorted(histogram))
    counts = np.array([histogram[value] for value in values.tolist()])
    found = optimal_starts(values, counts, num_groups)
    assert found[0] == 0
    assert len(set(found.tolist())) == len(found) <= num_groups
    every = (
        (0, *rest) for size in range(min(num_groups, len(values))) for rest in combinations(range(1, len(values)), size)
    )
    assert excess(values, counts, tuple(found.tolist())) == min(excess(values, counts, starts) for starts in every)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=200), st.integers(1, 8), st.floats(0.5, 30))
def test_every_long_enough_utterance_fills_the_crop_it_is_given(
    samples: list[int], shapes: int, batch_s: float
) -> None:
    samples_N = np.array(samples, dtype=np.uint64)
    arguments = {"max_crop_s": 10.0, "min_crop_s": 0.5, "num_shapes": shapes, "batch_s": batch_s}
    if max(samples) < 8_000:
        with pytest.raises(ConfigError, match="min_crop_s"):
            choose_shapes(samples_N, **arguments)
        return
    chosen = choose_shapes(samples_N, **arguments)
    assert list(chosen.lengths) == sorted(set(chosen.lengths))
    assert all(length % 320 == 0 and 8_000 <= length <= 160_000 for length in chosen.lengths)
    assert chosen.rows == tuple(max(1, round(batch_s * 16_000 / length)) for length in chosen.lengths)
    for sample, bucket in zip(samples, chosen.assign(samples_N).tolist(), strict=True):
        assert (bucket == -1) == (sample < 8_000)
        if bucket >= 0:
            assert chosen.lengths[bucket] <= sample
            assert bucket + 1 == len(chosen.lengths) or chosen.lengths[bucket + 1] > sample


def test_a_bucket_that_fills_no_batch_is_merged_into_the_next_shorter() -> None:
    samples_N = np.array([16_000] * 50 + [32_000] * 50 + [48_000] * 2 + [64_000])
    chosen = choose_shapes(samples_N, max_crop_s=4, min_crop_s=1, num_shapes=4, batch_s=16)
    assert chosen == Shapes(lengths=(16_000, 32_000), rows=(16, 8))
    tiny = choose_shapes(samples_N[-2:], max_crop_s=4, min_crop_s=1, num_shapes=4, batch_s=16)
    assert tiny == Shapes(lengths=(48_000,), rows=(5,))


def test_several_sparse_buckets_merge_until_one_is_full() -> None:
    samples_N = np.array([16_000] * 50 + [48_000] * 3 + [64_000] * 3)
    chosen = choose_shapes(samples_N, max_crop_s=4, min_crop_s=1, num_shapes=3, batch_s=16)
    assert chosen == Shapes(lengths=(16_000, 48_000), rows=(16, 5))


def test_what_filled_one_bucket_is_not_counted_again_for_the_next() -> None:
    # 3 and 4 fill the batch of 48,000 samples; the 6 of 32,000 are too few for their own 8
    samples_N = np.array([16_000] * 50 + [32_000] * 6 + [48_000] * 3 + [64_000] * 3)
    chosen = choose_shapes(samples_N, max_crop_s=4, min_crop_s=1, num_shapes=4, batch_s=16)
    assert chosen == Shapes(lengths=(16_000, 48_000), rows=(16, 5))


def test_the_unused_fraction_counts_what_is_cropped_and_what_is_left_out() -> None:
    shapes = Shapes(lengths=(10, 20), rows=(2, 1))
    samples_N = np.array([5, 12, 20, 100])
    # offered 5 + 12 + 20 + 25, used 0 + 10 + 20 + 20
    assert shapes.unused_fraction(samples_N, max_samples=25) == pytest.approx(1 - 50 / 62)
    assert shapes.num_excluded(samples_N) == 1
    assert shapes.num_excluded(np.array([9, 10, 11])) == 1
    # what a crop holds beyond the bound was not offered: 5 + 12 + 15 + 15, used 0 + 10 + 15 + 15
    assert shapes.unused_fraction(samples_N, max_samples=15) == pytest.approx(1 - 40 / 47)


def test_more_shapes_never_leave_more_unused() -> None:
    samples_N = (np.random.default_rng(0).gamma(6, 2, 20_000) * 16_000).astype(np.int64)
    chosen = [
        choose_shapes(samples_N, max_crop_s=15.6, min_crop_s=2, num_shapes=n, batch_s=87.5) for n in (1, 2, 4, 8, 16)
    ]
    unused = [shapes.unused_fraction(samples_N, int(15.6 * 16_000)) for shapes in chosen]
    assert unused == sorted(unused, reverse=True)
    assert unused[-1] < 0.05


@pytest.mark.parametrize("wrong", [{"min_crop_s": 5.0, "max_crop_s": 4.0}, {"num_shapes": 0}, {"batch_s": 0.0}])
def test_impossible_numbers_are_refused_by_name(wrong: dict[str, float]) -> None:
    arguments = {"max_crop_s": 4.0, "min_crop_s": 1.0, "num_shapes": 2, "batch_s": 8.0, **wrong}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        choose_shapes(np.array([32_000]), **arguments)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 400_000), min_size=1, max_size=50),
    st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    st.sampled_from((32_000, 48_000)),
)
def test_pieces_share_an_utterance_without_a_gap_and_cut_away_no_more_than_is_allowed(
    samples: list[int], max_cut: float, shortest: int
) -> None:
    rule = Pieces(max_samples=64_000, min_samples=shortest, max_cut=max_cut)
    samples_N = np.array(samples)
    count_N = rule.count(samples_N)
    for number, (length, count) in enumerate(zip(samples, count_N.tolist(), strict=True)):
        first, end = rule.spans(np.full(count, samples[number]), np.arange(count))
        assert (first[0], end[-1]) == (0, length)
        assert first[1:].tolist() == end[:-1].tolist()
        assert count == 1 or min(end - first) >= shortest
        assert count * 64_000 >= (1 - max_cut) * length or count == max(1, length // shortest)
        assert count == 1 or (count - 1) * 64_000 < (1 - max_cut) * length
        assert max_cut < 1 or count == 1


def test_long_recordings_are_heard_whole_in_pieces_and_for_the_most_part_unheard_without() -> None:
    samples_N = np.linspace(5 * 16_000, 60 * 16_000, 5_000).astype(np.int64)
    arguments = {"max_crop_s": 15.6, "min_crop_s": 2.0, "num_shapes": 18, "batch_s": 87.5}
    assert choose_shapes(samples_N, **arguments).unused_fraction(samples_N) > 0.5
    shapes = choose_shapes(samples_N, **arguments, max_cut=0.1)
    assert shapes.unused_fraction(samples_N) < 0.03
    crops = np.asarray(shapes.lengths)[shapes.assign(samples_N)]
    assert (crops * shapes.num_pieces(samples_N) <= samples_N).all()


@pytest.mark.parametrize("num_shapes", [4, 8, 18])
def test_optimal_shapes_leave_less_unheard_of_librispeech_than_even_ones_and_quantiles(num_shapes: int) -> None:
    samples_N = librispeech_lengths(20_000)
    ways = alternatives(samples_N, num_shapes, 15.6, 0.1)
    unheard = {how: shapes.unused_fraction(samples_N) for how, shapes in ways.items()}
    assert unheard["optimal"] < 0.9 * min(unheard["even"], unheard["quantiles"])


def test_less_than_three_percent_of_librispeech_is_unheard_with_the_configs_numbers() -> None:
    config = yaml.safe_load((Path(__file__).parents[2] / "conf" / "data" / "shards.yaml").read_text())
    keys = ("max_crop_s", "min_crop_s", "num_shapes", "batch_s", "max_cut")
    samples_N = librispeech_lengths()
    shapes = choose_shapes(samples_N, **{key: config[key] for key in keys})
    assert samples_N.mean() == pytest.approx(960.9 * 3600 / 281_241 * 16_000, rel=0.005)  # the model is of its size
    assert shapes.unused_fraction(samples_N) < 0.03
    assert shapes.unused_fraction(samples_N, int(15.6 * 16_000)) < 0.03


def test_a_weighted_histogram_gives_the_shapes_of_repeated_utterances() -> None:
    rng = np.random.default_rng(0)
    once, thrice = rng.integers(32_000, 200_000, 300), rng.integers(32_000, 90_000, 300)
    rule = Pieces(249_600, 32_000, 0.1)
    heard = length_histogram(once, rule)[0] + 3.0 * length_histogram(thrice, rule)[0]
    repeated = np.concatenate([once, thrice, thrice, thrice])
    expected = choose_shapes(repeated, max_crop_s=15.6, min_crop_s=2, num_shapes=5, batch_s=30, max_cut=0.1)
    assert shapes_of(heard, rule, num_shapes=5, batch_s=30) == expected


def test_each_piece_of_an_utterance_is_counted_at_its_length() -> None:
    counts = length_histogram(np.array([9_600, 3_300, 300]), Pieces(3_200, 320, 0.0))[0]
    # three pieces of 3,200 samples, two of 1,650, and what is too short for any
    assert {place * 320: count for place, count in enumerate(counts.tolist()) if count} == {3_200: 3, 1_600: 2}


def test_no_crop_is_shorter_than_the_shortest_that_was_asked_for() -> None:
    rule = pieces_of(max_crop_s=1.03, min_crop_s=0.03, max_cut=1.0)
    assert (rule.min_samples, rule.max_samples) == (640, 16_320)  # multiples of 320 within [480, 16,480]


def test_what_is_heard_less_than_once_an_epoch_still_has_a_shape() -> None:
    heard = np.zeros(11)
    heard[[5, 10]] = 0.2
    assert shapes_of(heard, Pieces(3_200, 320, 1.0), num_shapes=2, batch_s=0.1).lengths == (1_600, 3_200)


def test_an_impossible_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_cut"):
        choose_shapes(np.array([32_000]), max_crop_s=4, min_crop_s=1, num_shapes=2, batch_s=8, max_cut=1.5)
