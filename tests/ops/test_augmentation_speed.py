import numpy as np
import pytest
import soxr
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.ops.augmentation_speed import change_speed, follow_labels, latest_starts, speed_table

CLOCK = FrameClock().then(400, 320)


def band_limited(rows: int = 1, samples: int = 8_000) -> torch.Tensor:
    noise = np.random.default_rng(0).standard_normal((rows, samples))
    low = signal.firwin(201, 6_000, fs=16_000)
    return torch.from_numpy(signal.fftconvolve(noise, low[None], mode="same", axes=1)).float() * 0.3


@pytest.mark.parametrize("factor", [0.8, 0.9, 0.95, 1.05, 1.1, 1.25])
def test_speed_equals_torchaudios_resampling_with_the_same_filter(factor: float) -> None:
    waveform = band_limited(2)
    table = speed_table([factor], zeros=16, rolloff=0.95)
    ours = change_speed(waveform, table, torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    theirs = torchaudio.functional.resample(waveform, round(factor * 100), 100, lowpass_filter_width=16, rolloff=0.95)[
        :, : ours.shape[1]
    ]
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_equals_soxrs_resampling_where_both_pass_everything(factor: float) -> None:
    waveform = band_limited(1, 16_000)
    table = speed_table([factor])
    ours = change_speed(waveform, table, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))[0]
    theirs = soxr.resample(waveform[0].numpy(), factor * 16_000, 16_000, quality="VHQ")
    inside = slice(200, min(len(theirs), len(ours)) - 200)
    error = np.square(ours.numpy()[inside] - theirs[inside]).mean() / np.square(theirs[inside]).mean()
    assert 10 * np.log10(error) < -50


def test_rows_of_different_speeds_and_starts_equal_each_alone() -> None:
    waveform = band_limited(4, 8_002)
    table = speed_table([0.9, 1.1])
    choice, starts = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 500])
    together = change_speed(waveform, table, choice, starts)
    assert together.shape == (4, (8_002 - 1) * 10 // 11 + 1)
    for row in range(4):
        alone = change_speed(waveform[row : row + 1], table, choice[row : row + 1], starts[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=0)
        moment = torch.arange(together.shape[1], dtype=torch.float64) * (0.9, 1.1)[int(choice[row])] + int(starts[row])
        smooth = torch.sin(moment * 2 * np.pi * 440 / 16_000)
        tone = torch.sin(torch.arange(8_002, dtype=torch.float64) * 2 * np.pi * 440 / 16_000).float()[None]
        made = change_speed(tone, table, choice[row : row + 1], starts[row : row + 1])[0]
        torch.testing.assert_close(made[50:-50].double(), smooth[50:-50], atol=1e-3, rtol=0)


@given(samples=st.integers(2, 5_000), factor=st.sampled_from([0.5, 0.8, 0.9, 1.1, 1.25, 2.0]))
@settings(max_examples=80, deadline=None)
def test_the_latest_start_is_the_last_that_stays_inside(samples: int, factor: float) -> None:
    table = speed_table([factor])
    made = table.num_samples(samples)
    latest = int(latest_starts(table, torch.zeros(1, dtype=torch.int64), samples))
    last_place = (made - 1) * int(table.steps_V[0]) / table.phases
    assert latest >= 0
    assert latest + last_place <= samples - 1 < latest + 1 + last_place + 1e-9
    assert made <= samples


def test_labels_follow_the_frames_that_they_belong_to() -> None:
    """A label that names its moment names, after the change, the moment that the frame's centre came from."""
    samples = 32_000
    frames = CLOCK.num_frames(samples)
    labels = torch.arange(frames, dtype=torch.int16).repeat(3, 1)
    starts, factors = torch.tensor([0, 1_111, 0]), torch.tensor([0.9, 1.1, 1.0])
    made = (samples - 2_222) * 10 // 11
    after = follow_labels(labels, CLOCK, starts, factors, made)
    assert after.shape == (3, CLOCK.num_frames(made))
    assert after.dtype == torch.int16
    for row in range(3):
        for frame, label in enumerate(after[row].tolist()):
            came_from = float(starts[row]) + float(factors[row]) * CLOCK.centre_samples(frame)
            nearest = min(range(frames), key=lambda t: abs(CLOCK.centre_samples(t) - came_from))
            assert abs(CLOCK.centre_samples(label) - came_from) <= abs(CLOCK.centre_samples(nearest) - came_from) + 1
    assert torch.equal(after[2], labels[2, : after.shape[1]])


def test_a_click_and_its_label_stay_together() -> None:
    table = speed_table([0.9, 1.1])
    for choice in (0, 1):
        waveform, click = torch.zeros(1, 16_000), 9_000
        waveform[0, click] = 1.0
        frame = round((click - CLOCK.centre_samples(0)) / CLOCK.stride_samples)
        labels = torch.zeros(1, CLOCK.num_frames(16_000), dtype=torch.int64)
        labels[0, frame - 1 : frame + 2] = 1
        which = torch.tensor([choice])
        starts = latest_starts(table, which, 16_000)
        after = change_speed(waveform, table, which, starts)
        moved = follow_labels(labels, CLOCK, starts, table.steps_V[which] / table.phases, after.shape[1])
        now = round((int(after.abs().argmax()) - CLOCK.centre_samples(0)) / CLOCK.stride_samples)
        assert moved[0, now] == 1
        assert int(moved.sum()) in {2, 3, 4}


@pytest.mark.parametrize("factors", [[], [1.0], [0.0], [-0.9], [0.97, 1.013], [0.94371]])
def test_speeds_that_cannot_be_made_are_refused(factors: list[float]) -> None:
    with pytest.raises(ConfigError, match="cannot be made"):
        speed_table(factors)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_change_of_speed_compiles_as_one_graph(backend: str) -> None:
    torch._dynamo.reset()
    table, waveform = speed_table([0.9, 1.1]), band_limited(3, 2_000)
    labels = torch.arange(CLOCK.num_frames(2_000)).repeat(3, 1)

    def both(x: torch.Tensor, choice: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        changed = change_speed(x, table, choice, starts)
        factors = table.steps_V.index_select(0, choice) / table.phases
        return changed, follow_labels(labels, CLOCK, starts, factors, changed.shape[1])

    arguments = waveform, torch.tensor([0, 1, 0]), torch.tensor([3, 0, 100])
    compiled = torch.compile(both, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), both(*arguments))
