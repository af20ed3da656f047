import numpy as np
import pytest
import torch
from scipy import stats

from ossicle.augmentation.noise import Noise
from ossicle.augmentation.noise_source import ColouredNoise, RecordedNoise
from ossicle.core.errors import ConfigError, DataError
from tests.augmentation.conftest import CLOCK, make_batch

BANK = (torch.arange(-3_000, 3_000) * 5).to(torch.int16)


def measured_db(noise: Noise, rows: int = 100) -> np.ndarray:
    batch = make_batch(rows)
    before, after = batch.waveform_BS.double(), noise(batch, seed=0).waveform_BS.double()
    return (10 * (before.square().mean(1) / (after - before).square().mean(1)).log10()).numpy()


def test_ratios_fill_their_range_evenly() -> None:
    ratios = measured_db(Noise(CLOCK, noise=ColouredNoise, snr_db=(5.0, 20.0)), 300)
    assert 4.99 < ratios.min() < 6
    assert 19 < ratios.max() < 20.01
    assert stats.kstest(ratios, stats.uniform(5, 15).cdf).pvalue > 1e-3


def test_recorded_noise_is_a_window_of_the_recordings_round_its_end_at_the_wanted_ratio() -> None:
    part = Noise(CLOCK, noise=lambda rate_hz: RecordedNoise(rate_hz, recordings=lambda _: BANK), snr_db=(3.0, 3.0))
    part.load(torch.device("cpu"))
    np.testing.assert_allclose(measured_db(part), 3.0, atol=1e-3)
    source = RecordedNoise(16_000, recordings=lambda _: BANK)
    source.load(torch.device("cpu"))
    drawn = source.draw(20, 4_000, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32
    starts = set()
    for row in drawn:
        start = int((row[0] * 32_768).round() / 5) + 3_000
        starts.add(start)
        assert torch.equal(row, torch.roll(BANK, -start)[:4_000].float() / 32_768)
    assert len(starts) > 15


def test_a_bank_shorter_than_the_crop_is_repeated() -> None:
    source = RecordedNoise(16_000, recordings=lambda _: BANK[:7])
    source.load(torch.device("cpu"))
    drawn = source.draw(2, 30, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, :7], drawn[:, 7:14])


@pytest.mark.parametrize("bank", [torch.zeros(0, dtype=torch.int16), torch.zeros(5), torch.zeros(2, 2).short()])
def test_a_bank_of_another_kind_is_refused(bank: torch.Tensor) -> None:
    with pytest.raises(DataError, match="noise recordings"):
        RecordedNoise(16_000, recordings=lambda _: bank).load(torch.device("cpu"))


def test_coloured_noise_differs_in_colour_from_row_to_row() -> None:
    rows = ColouredNoise(16_000).draw(30, 8_000, torch.Generator().manual_seed(0)).double()
    smooth = (rows.diff(dim=1).square().mean(1) / rows.square().mean(1)).numpy()  # 2 for white, near 0 for brown
    assert smooth.min() < 0.3
    assert smooth.max() > 1.5


@pytest.mark.parametrize("numbers", [{"low_hz": 0.0}, {"low_hz": 9_000.0}, {"exponent": (2.0, 0.0)}])
def test_colours_out_of_range_are_refused_by_name(numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(numbers))):
        ColouredNoise(16_000, **numbers)  # ty: ignore[invalid-argument-type]
