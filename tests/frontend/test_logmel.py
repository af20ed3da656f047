import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torchaudio.compliance import kaldi

from ossicle.core.errors import ConfigError, DataError
from ossicle.frontend.logmel import LogMel, shift_bands
from ossicle.frontend.logmel_conv import LogMelConv
from ossicle.frontend.wave import Wave
from ossicle.layer.normalisation import GlobalNorm


@hypothesis.given(samples=st.integers(720, 8_000), stack=st.integers(1, 4))
@hypothesis.settings(max_examples=40, deadline=None)
def test_the_clock_counts_the_frames_that_come_out(samples: int, stack: int) -> None:
    frontend = LogMel(stack=stack)
    hypothesis.assume(frontend.clock.num_frames(samples) > 0)
    frames = frontend(torch.randn(1, samples))
    assert frames.valid_BT is None
    assert frames.features_BTC.shape == (1, frontend.clock.num_frames(samples), 80 * stack)


def test_frames_are_normalised_kaldi_features_side_by_side() -> None:
    waveform = torch.randn(1, 8_123, generator=torch.Generator().manual_seed(0)) * 0.1
    mels = kaldi.fbank(waveform, num_mel_bins=80, dither=0.0)
    mels = (mels - mels.mean(0)) / mels.var(0, unbiased=False).add(1e-5).sqrt()
    expected = torch.cat([mels[: len(mels) // 2 * 2 : 2], mels[1 : len(mels) // 2 * 2 : 2]], -1)
    torch.testing.assert_close(LogMel()(waveform).features_BTC[0], expected, atol=1e-3, rtol=1e-3)


@hypothesis.given(lengths=st.lists(st.integers(560, 5_000), min_size=2, max_size=4))
@hypothesis.settings(max_examples=20, deadline=None)
def test_a_padded_row_equals_the_row_alone(lengths: list[int]) -> None:
    frontend = LogMel()
    waveform_BS = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveform_BS[row, :length] = torch.randn(length)
    frames = frontend(waveform_BS, torch.tensor(lengths))
    assert frames.valid_BT is not None
    for row, length in enumerate(lengths):
        alone = frontend(waveform_BS[row : row + 1, :length]).features_BTC[0]
        assert frames.valid_BT[row].sum() == len(alone)
        torch.testing.assert_close(frames.features_BTC[row, : len(alone)], alone, atol=1e-3, rtol=1e-3)


def test_its_frames_mean_the_same_moments_as_the_wave_frontends() -> None:
    with torch.device("meta"):
        wave = Wave()
    clock = LogMel().clock
    assert clock.agrees_with(wave.clock)
    assert (clock.kernel_samples, clock.stride_samples) == (560, 320)


def test_it_has_nothing_to_load_and_a_shape_on_the_meta_device() -> None:
    frontend = LogMel(num_mels=40, stack=4)
    assert not frontend.state_dict()
    assert frontend(torch.empty(2, 16_000, device="meta")).features_BTC.shape == (2, 24, 160)


def test_loudness_makes_no_difference() -> None:
    waveform = torch.randn(1, 4_000)
    frontend = LogMel()
    quiet, loud = frontend(waveform * 0.1).features_BTC, frontend(waveform).features_BTC
    torch.testing.assert_close(quiet, loud, atol=1e-3, rtol=1e-3)


def test_settings_that_make_no_frames_are_refused() -> None:
    with pytest.raises(ConfigError, match="stack=0"):
        LogMel(stack=0)
    with pytest.raises(ConfigError, match="hop_ms"):
        LogMel(hop_ms=0.01)
    with pytest.raises(DataError, match="500 samples are fewer than the 560"):
        LogMel()(torch.randn(1, 500))


def test_bands_are_shifted_in_training_alone_and_as_a_whole() -> None:
    mels_BTC = torch.randn(64, 3, 10)
    torch.manual_seed(0)
    shifted_BTC = shift_bands(mels_BTC, 2)
    seen = set()
    for row, original in zip(shifted_BTC, mels_BTC, strict=True):
        for shift in range(-2, 3):
            places = (torch.arange(10) + shift).clamp(0, 9)
            if torch.equal(row, original[:, places]):
                seen.add(shift)
    assert seen == {-2, -1, 0, 1, 2}
    torch.manual_seed(0)
    assert torch.equal(shift_bands(mels_BTC, 2), shifted_BTC)
    frontend, plain = LogMel(band_shift=4), LogMel()
    wave = torch.randn(4, 8000)
    assert torch.equal(frontend.eval()(wave).features_BTC, plain(wave).features_BTC)
    assert not torch.equal(frontend.train()(wave).features_BTC, plain(wave).features_BTC)


def test_a_shift_beyond_the_bands_is_refused() -> None:
    with pytest.raises(ConfigError, match="band_shift=80"):
        LogMel(band_shift=80)


def test_with_the_norm_of_all_data_a_frame_is_kaldis_less_their_mean_over_their_deviation() -> None:
    frontend = LogMel(norm="global")
    assert isinstance(frontend.norm, GlobalNorm)
    source = torch.Generator().manual_seed(0)
    mean, deviation = torch.randn(80, generator=source) - 5, torch.rand(80, generator=source) + 1
    frontend.norm.fit(mean, deviation)
    assert set(frontend.state_dict()) == {"norm.mean_C", "norm.deviation_C"}
    waveform = torch.randn(1, 8_123, generator=source) * 0.1
    mels = (kaldi.fbank(waveform, num_mel_bins=80, dither=0.0) - mean) / deviation
    expected = torch.cat([mels[: len(mels) // 2 * 2 : 2], mels[1 : len(mels) // 2 * 2 : 2]], -1)
    torch.testing.assert_close(frontend(waveform).features_BTC[0], expected, atol=1e-3, rtol=1e-3)
    quiet = frontend(waveform * 0.1).features_BTC[0]
    drop = 2 * torch.tensor(10.0).log() / deviation.repeat(2)  # loudness stays: a tenth is 4.6 less in each band
    torch.testing.assert_close(frontend(waveform).features_BTC[0] - quiet, drop.expand_as(quiet), atol=2e-3, rtol=1e-3)
    longer = torch.nn.functional.pad(waveform, (0, 3_000))
    frames = frontend(longer, torch.tensor([8_123]))
    assert frames.valid_BT is not None
    torch.testing.assert_close(frames.features_BTC[frames.valid_BT], frontend(waveform).features_BTC[0])


def test_with_the_running_norm_a_padded_rows_frames_are_those_of_the_row_alone() -> None:
    frontend, waveform = LogMel(norm="running"), torch.randn(1, 8_123, generator=torch.Generator().manual_seed(0))
    assert set(frontend.state_dict()) == {"norm.prior.mean_C", "norm.prior.deviation_C"}
    frames = frontend(torch.nn.functional.pad(waveform, (0, 3_000)), torch.tensor([8_123]))
    assert frames.valid_BT is not None
    torch.testing.assert_close(frames.features_BTC[frames.valid_BT], frontend(waveform).features_BTC[0])


def test_the_convolved_frontend_hands_its_norm_on_and_another_is_refused() -> None:
    assert isinstance(LogMelConv(((8, 5, 2),), norm="global").mels.norm, GlobalNorm)
    with pytest.raises(ConfigError, match="norm=both"):
        LogMel(norm="both")  # ty: ignore[invalid-argument-type]


def test_frames_of_other_rates_windows_and_edges_are_kaldis_too() -> None:
    waveform = torch.randn(1, 8_123, generator=torch.Generator().manual_seed(0)) * 0.1
    mels = kaldi.fbank(
        waveform, num_mel_bins=23, frame_length=20.0, frame_shift=8.0, sample_frequency=8_000.0, low_freq=100.0,
        high_freq=3_500.0, dither=0.0,
    )  # fmt: skip
    numbers = {"window_ms": 20.0, "hop_ms": 8.0, "rate_hz": 8_000, "low_hz": 100.0, "high_hz": 3_500.0}
    frontend = LogMel(num_mels=23, stack=1, norm="global", **numbers)
    torch.testing.assert_close(frontend(waveform).features_BTC[0], mels, atol=1e-3, rtol=1e-3)
    assert (frontend.clock.rate_hz, frontend.clock.frames_per_s) == (8_000, 125)
