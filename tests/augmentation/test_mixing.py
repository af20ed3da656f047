import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from ossicle.augmentation.mixing import Mixing
from ossicle.augmentation.noise_source import ColouredNoise
from ossicle.core.errors import ConfigError
from tests.augmentation.conftest import CLOCK, make_batch

SAMPLES = 1_000


def mixed(rows: int, part: Mixing, position: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows before, and what was added to them."""
    batch = make_batch(rows, SAMPLES, position)
    after = part(batch, seed=0)
    return batch.waveform_BS.double().numpy(), (after.waveform_BS.double() - batch.waveform_BS.double()).numpy()


def test_less_than_half_of_the_crop_is_covered_by_a_segment_of_uniform_length_and_place() -> None:
    lengths, places = [], []
    for position in range(20):
        _, added = mixed(64, Mixing(CLOCK, probability=1.0), position)
        for row in added:
            covered = np.flatnonzero(row)
            lengths.append(covered[-1] - covered[0] + 1)
            places.append(covered[0] / max(1, SAMPLES - lengths[-1]))
    assert max(lengths) < SAMPLES / 2
    assert stats.kstest(lengths, stats.randint(1, SAMPLES // 2).cdf).pvalue > 1e-3
    assert stats.kstest(places, stats.uniform().cdf).pvalue > 1e-3


def test_lengths_begin_at_the_least_share_and_are_all_one_where_both_shares_are() -> None:
    for least, expected in ((0.5, {500}), (0.499, {499})):
        part = Mixing(CLOCK, probability=1.0, min_overlap=least)
        lengths = set()
        for position in range(4):
            for row in mixed(16, part, position)[1]:
                covered = np.flatnonzero(row)
                lengths.add(int(covered[-1] - covered[0] + 1))
        assert lengths == expected
    lengths_of = [np.flatnonzero(row) for row in mixed(64, Mixing(CLOCK, probability=1.0, min_overlap=0.3))[1]]
    assert all(300 <= covered[-1] - covered[0] + 1 < 500 for covered in lengths_of)
    assert len({len(covered) for covered in lengths_of}) > 10


def test_the_segment_is_another_rows_at_a_ratio_within_its_range() -> None:
    before, added = mixed(16, Mixing(CLOCK, probability=1.0, ratio_db=(-5.0, 5.0)))
    power = (before**2).mean(1)
    ratios, partners = [], []
    for row, addition in enumerate(added):
        covered = np.flatnonzero(addition)
        segment = addition[covered[0] : covered[-1] + 1]
        if len(segment) < 50:
            continue
        best = {}
        for other in range(16):
            windows = np.lib.stride_tricks.sliding_window_view(before[other], len(segment))
            scales = windows @ segment / (windows**2).sum(1)
            errors = ((segment - scales[:, None] * windows) ** 2).sum(1) / (segment**2).sum()
            place = int(errors.argmin())
            best[other] = (errors[place], scales[place])
        partner = min(best, key=lambda other: best[other][0])
        error, scale = best[partner]
        assert error < 1e-6
        assert partner != row
        partners.append((partner - row) % 16)
        ratios.append(10 * np.log10(power[row] / (scale**2 * power[partner])))
    assert len(ratios) > 10
    assert -5.01 < min(ratios) < 0 < max(ratios) < 5.01
    assert len(set(partners)) > 4


def test_a_silent_row_adds_nothing_and_nothing_is_scaled_up_to_be_heard() -> None:
    batch = make_batch(2, SAMPLES)
    quiet = batch.waveform_BS.clone()
    quiet[1] = 0
    after = Mixing(CLOCK, probability=1.0)(replace(batch, waveform_BS=quiet), seed=0).waveform_BS
    assert torch.equal(after, quiet)


def test_noise_takes_its_share_of_the_mixed_rows_at_its_own_ratios() -> None:
    part = Mixing(
        CLOCK,
        probability=1.0,
        ratio_db=(-50.0, -50.0),
        noise=ColouredNoise,
        noise_probability=0.25,
        noise_ratio_db=(50.0, 50.0),
    )
    noisy = total = 0
    for position in range(20):
        before, added = mixed(32, part, position)
        for row, addition in enumerate(added):
            covered = np.flatnonzero(addition)
            if len(covered) > 20:
                total += 1
                noisy += (addition[covered] ** 2).mean() < 0.1 * (before[row] ** 2).mean()
    low, high = stats.binom.interval(1 - 1e-5, total, 0.25)
    assert low <= noisy <= high


def test_a_batch_of_one_row_is_left_alone_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    part, batch = Mixing(CLOCK, probability=1.0), make_batch(1, SAMPLES)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(part(batch, seed=0).waveform_BS, batch.waveform_BS)
    assert sum("one row" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    "numbers",
    [
        {"max_overlap": 0.6},
        {"max_overlap": 0.0},
        {"min_overlap": 0.51},
        {"noise_probability": 0.1},
        {"ratio_db": (5.0, -5.0)},
    ],
)
def test_numbers_out_of_range_are_refused_by_name(numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(numbers))):
        Mixing(CLOCK, **numbers)  # ty: ignore[invalid-argument-type]
