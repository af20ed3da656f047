import numpy as np
import pytest
from scipy.stats import binomtest

from ossicle.probe.interval import bootstrap


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        counts = rng.integers(20, 60, size=80)
        rates = rng.beta(3, 7, size=80)  # utterances differ: frames are not independent
        found = bootstrap(rng.binomial(counts, rates)[None], counts, draws=400, seed=trial)
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_interval_is_wider_than_one_that_takes_frames_for_independent() -> None:
    counts = np.full(40, 100)
    errors = np.where(np.arange(40) % 2, 90, 10)
    found = bootstrap(errors[None], counts)
    binomial = 2 * 1.96 * (0.25 / 4000) ** 0.5
    assert found.error == 0.5
    assert found.high - found.low > 5 * binomial


def test_repeats_that_differ_widen_the_interval() -> None:
    counts = np.full(50, 10)
    same = bootstrap(np.full((3, 50), 5), counts)
    differ = bootstrap(np.repeat([[3], [5], [7]], 50, axis=1), counts)
    assert same.error == differ.error == 0.5
    assert (same.low, same.high) == (0.5, 0.5)
    assert differ.high - differ.low > 0.1


def test_the_interval_is_the_same_each_time() -> None:
    errors, counts = np.arange(12).reshape(2, 6), np.full(6, 12)
    assert bootstrap(errors, counts) == bootstrap(errors, counts)
    assert bootstrap(errors, counts) != bootstrap(errors, counts, seed=1)


def test_nothing_counted_gives_no_rate() -> None:
    assert np.isnan(bootstrap(np.zeros((1, 3)), np.zeros(3)).error)


def test_the_rate_is_of_all_units_not_of_utterances() -> None:
    assert bootstrap(np.array([[10, 0]]), np.array([10, 90])).error == pytest.approx(0.1)


def test_no_error_in_few_utterances_is_no_proof_of_perfection() -> None:
    found = bootstrap(np.zeros((2, 20)), np.ones(20))
    assert (found.error, found.low) == (0, 0)
    assert found.high == pytest.approx(binomtest(0, 20).proportion_ci(0.95).high)
    assert bootstrap(np.ones((1, 20)), np.ones(20)).low == pytest.approx(1 - found.high)
