from functools import partial

import pytest
import torch
from torch.nn import functional

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.encoder.progressive import Progressive
from ossicle.frontend.logmel import LogMel
from ossicle.mixer.attention import Attention

STAGES = (
    {"convolutions": [[12, 5, 2], [16, 5, 2], [16, 1, 1]], "num_layers": 1, "ffn_dim": 24},
    {"convolutions": [[24, 5, 2], [24, 1, 1]], "num_layers": 2, "ffn_dim": 32},
)


def small(**changes: object) -> Progressive:
    torch.manual_seed(0)
    settings = {"stages": STAGES, "input_dim": 20, "position_kernel": 8, "position_groups": 4} | changes
    return Progressive(partial(Attention, num_heads=None, head_dim=8, dropout=0.0), **settings, dropout=0.0).eval()


def test_spirals_size_runs_at_12_frames_and_a_half_with_its_parameters() -> None:
    stages = (
        {"convolutions": [[384, 5, 2], [512, 5, 2], [512, 1, 1]], "num_layers": 2, "ffn_dim": 2048},
        {"convolutions": [[1536, 5, 2], [768, 1, 1]], "num_layers": 10, "ffn_dim": 3072},
    )
    with torch.device("meta"):
        encoder = Progressive(partial(Attention, num_heads=None, head_dim=64), stages=stages)
        clock = encoder.clock(LogMel(num_mels=128, stack=1).clock)
    assert clock.frames_per_s == 12.5
    heads = [block.mixer.num_heads for block in encoder.blocks]
    assert heads == [8] * 2 + [12] * 10
    total = sum(p.numel() for p in encoder.parameters())
    assert total == pytest.approx(91.4e6, rel=0.05)  # what ESSL's code, of the same shape, is counted to have


def test_each_stage_equals_torchs_convolutions_each_with_norm_and_relu() -> None:
    encoder = small()
    x_BTD = torch.randn(2, 30, 20)
    stage = encoder.shorten[0]
    expected = x_BTD.transpose(1, 2)
    for convolution in stage.convolutions:
        expected = functional.conv1d(
            expected, convolution.weight, convolution.bias, convolution.stride, convolution.weight.shape[2] // 2
        ).transpose(1, 2)
        expected = functional.relu(functional.layer_norm(expected, (expected.shape[2],))).transpose(1, 2)
    torch.testing.assert_close(stage(x_BTD, None)[0], expected.transpose(1, 2))


def test_layers_of_a_higher_rate_come_on_the_outputs_clock() -> None:
    encoder = small()
    output = encoder(torch.randn(1, 50, 20), layers=True)
    assert [layer.shape[1] for layer in output.layers] == [output.last_BTD.shape[1]] * 4
    assert [layer.shape[2] for layer in output.layers] == [16, 16, 24, 24]
    assert encoder.clock(FrameClock()).stride_samples == 8


def test_a_stage_without_a_convolution_and_an_even_kernel_are_refused() -> None:
    with pytest.raises(ConfigError, match="begins with a convolution"):
        small(stages=())
    with pytest.raises(ConfigError, match="no centre"):
        small(stages=({"convolutions": [[8, 4, 2]], "num_layers": 1, "ffn_dim": 8},))
