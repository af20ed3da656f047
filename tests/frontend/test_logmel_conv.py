import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional
from transformers import Speech2TextConfig
from transformers.models.speech_to_text.modeling_speech_to_text import Conv1dSubsampler

from ossicle.core.errors import ConfigError
from ossicle.frontend.logmel import LogMel
from ossicle.frontend.logmel_conv import LogMelConv

TWICE_HALF = ((12, 5, 2), (16, 3, 2))


def build(convolutions: tuple[tuple[int, int, int], ...] = TWICE_HALF) -> LogMelConv:
    torch.manual_seed(0)
    return LogMelConv(convolutions, num_mels=20).eval()


@hypothesis.given(samples=st.integers(400, 6_000))
@hypothesis.settings(max_examples=30, deadline=None)
def test_the_clock_counts_the_frames_that_come_out(samples: int) -> None:
    frontend = build()
    assert frontend(torch.randn(1, samples)).features_BTC.shape == (1, frontend.clock.num_frames(samples), 16)


@pytest.mark.parametrize(
    ("convolutions", "rate"),
    [(((8, 5, 2), (8, 5, 1)), 50), (TWICE_HALF, 25), (((8, 5, 2), (8, 5, 2), (8, 5, 2)), 12.5)],
)
def test_its_rate_is_that_of_the_strides(convolutions: tuple[tuple[int, int, int], ...], rate: float) -> None:
    assert build(convolutions).clock.frames_per_s == rate


def test_frame_0_is_centred_on_the_first_mel_frame() -> None:
    frontend = build()
    assert frontend.clock.centre_samples(0) == LogMel(num_mels=20, stack=1).clock.centre_samples(0)


def test_it_equals_torchs_convolutions_over_log_mel_frames() -> None:
    frontend = build()
    waveform_BS = torch.randn(2, 4_000)
    expected = LogMel(num_mels=20, stack=1).eval()(waveform_BS).features_BTC.transpose(1, 2)
    for layer, (_, kernel, stride) in zip(frontend.shorten.convolutions, TWICE_HALF, strict=True):
        expected = functional.conv1d(expected, layer.weight, layer.bias, stride, kernel // 2).transpose(1, 2)
        expected = functional.relu(functional.layer_norm(expected, (expected.shape[2],))).transpose(1, 2)
    torch.testing.assert_close(frontend(waveform_BS).features_BTC, expected.transpose(1, 2))


def test_gated_convolutions_equal_transformers_subsampler_of_speech2text() -> None:
    frontend = LogMelConv(TWICE_HALF, num_mels=20, gated=True).eval()
    (first, *_), (last, *_) = TWICE_HALF
    sizes = {"conv_channels": 2 * first, "d_model": last, "conv_kernel_sizes": [kernel for _, kernel, _ in TWICE_HALF]}
    theirs = Conv1dSubsampler(Speech2TextConfig(input_feat_per_channel=20, num_conv_layers=len(TWICE_HALF), **sizes))
    for ours, layer in zip(frontend.shorten.convolutions, theirs.conv_layers, strict=True):
        layer.load_state_dict(ours.state_dict())
    waveform_BS = torch.randn(2, 4_000)
    mels_BTC = LogMel(num_mels=20, stack=1).eval()(waveform_BS).features_BTC
    torch.testing.assert_close(frontend(waveform_BS).features_BTC, theirs(mels_BTC))


@hypothesis.given(lengths=st.lists(st.integers(400, 3_000), min_size=2, max_size=4))
@hypothesis.settings(max_examples=15, deadline=None)
def test_a_padded_row_equals_the_row_alone(lengths: list[int]) -> None:
    frontend = build()
    waveform_BS = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveform_BS[row, :length] = torch.randn(length)
    frames = frontend(waveform_BS, torch.tensor(lengths))
    assert frames.valid_BT is not None
    for row, length in enumerate(lengths):
        alone = frontend(waveform_BS[row : row + 1, :length]).features_BTC[0]
        assert frames.valid_BT[row].sum() == len(alone)
        torch.testing.assert_close(frames.features_BTC[row, : len(alone)], alone, atol=1e-4, rtol=1e-4)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernel of 4"):
        build(((8, 4, 2),))


def test_every_number_of_its_frames_reaches_them() -> None:
    numbers = {
        "num_mels": 20, "window_ms": 20.0, "hop_ms": 8.0, "rate_hz": 8_000, "low_hz": 100.0, "high_hz": 3_500.0,
        "band_shift": 3, "norm": "running",
    }  # fmt: skip
    frontend, waveform_BS = LogMelConv(TWICE_HALF, **numbers), torch.randn(4, 4_000)
    mels = LogMel(stack=1, **numbers)
    assert frontend.clock.rate_hz == 8_000
    assert frontend.clock.frames_per_s == 125 / 4
    for training in (True, False):
        torch.manual_seed(0)
        ours_BTC = frontend.train(training)(waveform_BS).features_BTC
        torch.manual_seed(0)
        expected_BTC, _ = frontend.shorten(mels.train(training)(waveform_BS).features_BTC, None)
        torch.testing.assert_close(ours_BTC, expected_BTC)


def test_the_gradient_into_the_convolutions_is_scaled() -> None:
    grads = []
    for scale in (1.0, 0.25):
        torch.manual_seed(0)
        frontend = LogMelConv(TWICE_HALF, num_mels=20, gradient_scale=scale)
        frontend(torch.randn(1, 4_000)).features_BTC.square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in frontend.parameters() if p.grad is not None]))
    torch.testing.assert_close(grads[1], 0.25 * grads[0])
