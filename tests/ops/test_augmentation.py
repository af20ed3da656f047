import math

import numpy as np
import pytest
import torch
from scipy import fft, signal, stats
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.core.errors import DataError
from ossicle.ops.augmentation import (
    add_noise,
    align_responses,
    colour,
    decaying_responses,
    fast_length,
    most_rows,
    overlay,
    pick_rows,
    reverberate,
    uniform,
)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sound(rows: int = 4, samples: int = 8_000, seed: int = 0) -> torch.Tensor:
    loudness = torch.rand(rows, 1, generator=source(seed)) * 0.3 + 0.01
    return torch.randn(rows, samples, generator=source(seed + 1)) * loudness


def power(x: torch.Tensor) -> np.ndarray:
    return x.double().square().mean(-1).numpy()


def test_noise_is_added_at_the_wanted_ratio_measured_in_float64() -> None:
    speech, noise = sound(6), sound(6, seed=9)
    wanted = torch.tensor([-10.0, 0.0, 3.5, 12.0, 30.0, 60.0])
    added = add_noise(speech, noise, wanted).double() - speech.double()
    measured = 10 * np.log10(power(speech) / power(added))
    np.testing.assert_allclose(measured[:5], wanted[:5].numpy(), atol=1e-3)
    assert measured[5] == pytest.approx(60.0, abs=0.01)  # float32 holds what little is added with fewer digits


def test_silent_noise_adds_nothing_and_silent_speech_stays_silent() -> None:
    speech = sound(2)
    almost = torch.full_like(speech, 2e-5)
    for noise in (torch.zeros_like(speech), almost):
        assert torch.equal(add_noise(speech, noise, torch.zeros(2)), speech)
    quiet = add_noise(torch.zeros(2, 100), sound(2, 100), torch.zeros(2))
    assert torch.equal(quiet, torch.zeros(2, 100))


def test_an_overlay_equals_algorithm_1_of_wavlm_in_float64() -> None:
    speech, other = sound(3, 1_000), sound(3, 1_000, seed=5)
    ratio = torch.tensor([-5.0, 0.0, 5.0])
    starts, others, lengths = torch.tensor([0, 600, 501]), torch.tensor([900, 0, 123]), torch.tensor([100, 400, 499])
    ours = overlay(speech, other, ratio, starts_B=starts, other_starts_B=others, lengths_B=lengths)
    for row in range(3):
        primary, secondary = speech[row].double().numpy().copy(), other[row].double().numpy()
        energies = (primary**2).sum() / 1_000, (secondary**2).sum() / 1_000
        scale = math.sqrt(energies[0] / (10 ** (float(ratio[row]) / 10) * energies[1]))
        at, there, length = int(starts[row]), int(others[row]), int(lengths[row])
        primary[at : at + length] += scale * secondary[there : there + length]
        np.testing.assert_allclose(ours[row].numpy(), primary, atol=1e-6)
        outside = torch.ones(1_000, dtype=torch.bool)
        outside[at : at + length] = False
        assert torch.equal(ours[row][outside], speech[row][outside])


@pytest.mark.parametrize(("samples", "taps", "lead"), [(1_000, 300, 0), (1_000, 300, 20), (777, 1, 0), (50, 400, 30)])
def test_reverberation_is_scipys_convolution_from_the_direct_path_on_at_the_same_level(
    samples: int, taps: int, lead: int
) -> None:
    dry, responses = sound(3, samples), sound(3, taps, seed=7)
    wet = reverberate(dry, responses, lead)
    assert wet.shape == dry.shape
    for row in range(3):
        full = signal.fftconvolve(dry[row].double().numpy(), responses[row].double().numpy())
        expected = np.pad(full, (0, samples))[lead : lead + samples]
        expected *= math.sqrt(power(dry)[row] / (expected**2).mean())
        np.testing.assert_allclose(wet[row].numpy(), expected, atol=3e-5)
    np.testing.assert_allclose(power(wet), power(dry), rtol=1e-4)


def test_a_click_stays_at_its_sample_in_any_room() -> None:
    dry = torch.zeros(2, 2_000)
    dry[:, 700] = 1.0
    recorded = [torch.randn(n, generator=source(n)) * 0.1 for n in (300, 40)]
    recorded[0][90] = -2.0
    recorded[1][3] = 2.0
    wet = reverberate(dry, align_responses(recorded, lead=16, length=200), 16)
    assert wet.abs().argmax(1).tolist() == [700, 700]


def test_responses_are_aligned_cut_and_filled_with_zeros() -> None:
    late, early = torch.arange(10.0) / 100, torch.tensor([0.1, -3.0, 0.2])
    late[7] = 5.0
    rows = align_responses([late, early], lead=2, length=6)
    expected = torch.tensor([[0.05, 0.06, 5.0, 0.08, 0.09, 0.0], [0.0, 0.1, -3.0, 0.2, 0.0, 0.0]])
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("responses", [[], [torch.zeros(5)], [torch.ones(3), torch.full((2,), math.nan)]])
def test_responses_without_a_sound_are_refused(responses: list[torch.Tensor]) -> None:
    with pytest.raises(DataError, match="impulse response"):
        align_responses(responses, lead=0, length=4)


def test_made_responses_decay_by_60_db_in_their_time_and_hold_the_wanted_direct_sound() -> None:
    decay, direct = torch.tensor([0.2, 0.5, 0.8]), torch.tensor([-3.0, 0.0, 12.0])
    responses = decaying_responses(
        torch.randn(3, 16_000, generator=source()), decay, direct, gap_samples=32, rate_hz=16_000
    ).double()
    assert torch.equal(responses[:, 0], torch.ones(3).double())
    assert torch.equal(responses[:, 1:32], torch.zeros(3, 31).double())
    tail_energy = responses[:, 32:].square().sum(1)
    np.testing.assert_allclose(-10 * tail_energy.log10().numpy(), direct.numpy(), atol=1e-3)
    for row in range(3):  # Schroeder's backward integral falls in a straight line, here between -5 and -25 dB
        left = responses[row, 32:].square().flip(0).cumsum(0).flip(0)
        level = 10 * (left / left[0]).log10()
        fitted = ((level <= -5) & (level >= -25)).nonzero().squeeze(1).numpy()
        slope = stats.linregress(fitted / 16_000, level.numpy()[fitted]).slope
        assert -60 / slope == pytest.approx(float(decay[row]), rel=0.05)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_coloured_noise_falls_as_its_exponent_says_and_holds_nothing_below_its_lowest_frequency(
    exponent: float,
) -> None:
    normal = torch.randn(40, fast_length(16_000) // 2 + 1, 2, generator=source(3))
    noise = colour(normal, torch.full((40,), exponent), samples=16_000, low_hz=50.0, rate_hz=16_000)
    frequency, density = signal.periodogram(noise.double().numpy(), 16_000, window="boxcar")
    mean = density.mean(0)
    band = (frequency >= 60) & (frequency <= 7_900)
    slope = stats.linregress(np.log10(frequency[band]), np.log10(mean[band])).slope
    assert slope == pytest.approx(-exponent, abs=0.05)
    assert mean[frequency < 49].max() < 1e-6 * mean[band].max()
    assert noise.shape == (40, 16_000)
    assert stats.kurtosis(noise.flatten().numpy()) == pytest.approx(0, abs=0.3)  # as a normal distribution


@pytest.mark.parametrize("samples", [1, 2, 7, 11, 97, 1_001, 40_007, 250_400])
def test_fast_lengths_are_scipys(samples: int) -> None:
    assert fast_length(samples) == fft.next_fast_len(samples, real=True)


@pytest.mark.parametrize(("rows", "probability"), [(1, 0.3), (8, 0.05), (64, 0.2), (256, 0.5), (512, 0.99), (16, 1.0)])
def test_room_for_chosen_rows_is_the_least_that_a_binomial_exceeds_once_in_a_million(
    rows: int, probability: float
) -> None:
    room = most_rows(rows, probability)
    assert stats.binom.sf(room, rows, probability) < 1.01e-6
    if room > 1:
        assert stats.binom.sf(room - 1, rows, probability) > 0.99e-6


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_rows_are_chosen_as_often_as_the_probability_says(probability: float) -> None:
    chosen, trials = torch.zeros(20), 2_000
    for seed in range(trials):
        rows, flags = pick_rows(20, probability, source(seed))
        assert len(rows.unique()) == len(rows) == most_rows(20, probability)
        chosen[rows[flags]] += 1
    low, high = stats.binom.interval(1 - 1e-5, 20 * trials, probability)
    assert low <= float(chosen.sum()) <= high
    low, high = stats.binom.interval(1 - 1e-5, trials, probability)
    assert low <= float(chosen.min()) <= float(chosen.max()) <= high


def test_uniform_draws_fill_their_range() -> None:
    draws = uniform(20_000, -5.0, 20.0, source()).numpy()
    assert stats.kstest(draws, stats.uniform(-5, 25).cdf).pvalue > 1e-3


def everything(speech: torch.Tensor, other: torch.Tensor, ratio: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    mixed = overlay(
        add_noise(speech, other, ratio), other, ratio, starts_B=lengths, other_starts_B=lengths, lengths_B=lengths
    )
    rooms = decaying_responses(other[:, :500], ratio.abs() + 0.1, ratio, gap_samples=8, rate_hz=16_000)
    return reverberate(mixed, rooms, 0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_waveform_changes_compile_as_one_graph(backend: str) -> None:
    torch._dynamo.reset()
    arguments = (sound(), sound(seed=4), torch.tensor([-1.0, 0.5, 2.0, 4.0]), torch.tensor([5, 60, 700, 8]))
    compiled = torch.compile(everything, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), everything(*arguments))


def test_no_change_reads_a_value_on_the_host() -> None:
    with FakeTensorMode():
        generator = torch.Generator().manual_seed(0)
        rows, _ = pick_rows(8, 0.2, generator)
        speech = torch.randn(8, 4_000).index_select(0, rows)
        count = len(rows)
        ratio = uniform(count, 0, 5, generator)
        out = everything(speech, speech, ratio, torch.ones(count, dtype=torch.int64))
        noise = colour(torch.randn(count, 2_001, 2), ratio, samples=4_000, low_hz=20.0, rate_hz=16_000)
        assert out.shape == noise.shape == (most_rows(8, 0.2), 4_000)
