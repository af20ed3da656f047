from functools import partial

import pytest
import torch
from torch.nn import functional

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.encoder.progressive import Progressive
from ossicle.frontend.logmel import LogMel
from ossicle.launch.config import compose
from ossicle.launch.experiment import resolved
from ossicle.layer.shortening import Shortening
from ossicle.mixer.attention import Attention

STAGES = (
    {"convolutions": [[12, 5, 2], [16, 5, 2], [16, 1, 1]], "num_layers": 1, "ffn_dim": 24},
    {"convolutions": [[24, 5, 2], [24, 1, 1]], "num_layers": 2, "ffn_dim": 32},
)


def small(**changes: object) -> Progressive:
    torch.manual_seed(0)
    settings = {"stages": STAGES, "input_dim": 20, "position_kernel": 8, "position_groups": 4, "dropout": 0.0} | changes
    return Progressive(partial(Attention, num_heads=None, head_dim=8, dropout=0.0), **settings).eval()


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


@pytest.mark.parametrize("last_activation", [True, False])
def test_each_stage_equals_torchs_convolutions_each_with_norm_and_relu(last_activation: bool) -> None:
    encoder = small(last_activation=last_activation, convolution_dropout=0.5)
    x_BTD = torch.randn(2, 30, 20)
    stage = encoder.shorten[0]
    expected = x_BTD.transpose(1, 2)
    for place, convolution in enumerate(stage.convolutions):
        expected = functional.conv1d(
            expected, convolution.weight, convolution.bias, convolution.stride, convolution.weight.shape[2] // 2
        ).transpose(1, 2)
        expected = functional.layer_norm(expected, (expected.shape[2],)).transpose(1, 2)
        if last_activation or place < 2:
            expected = functional.relu(expected)
    made = stage(x_BTD, None)[0]
    torch.testing.assert_close(made, expected.transpose(1, 2))
    assert bool((made < 0).any()) == (not last_activation)


def test_convolutions_have_dropout_where_they_have_an_activation() -> None:
    stage = small(last_activation=False, convolution_dropout=0.4).shorten[0].train()
    heard: list[torch.Tensor] = []
    for convolution in stage.convolutions:
        convolution.register_forward_hook(lambda _, given, made: heard.extend([*given, made]))
    x_BTD = torch.randn(8, 200, 20)
    out, _ = stage(x_BTD, None)
    for place in (0, 1):  # what the next convolution hears is what this one's norm and ReLU left, some of it
        before, after = heard[2 * place + 1].transpose(1, 2), heard[2 * place + 2].transpose(1, 2)
        active = functional.relu(functional.layer_norm(before, before.shape[2:]))
        kept = after != 0
        torch.testing.assert_close(after[kept], active[kept] / 0.6)
        assert float((kept & (active > 0)).sum() / (active > 0).sum()) == pytest.approx(0.6, abs=0.03)
    torch.testing.assert_close(out, functional.layer_norm(heard[-1].transpose(1, 2), (16,)))


def test_a_stage_skips_its_layers_by_its_own_probability_and_others_by_the_encoders() -> None:
    encoder = small(stages=({**STAGES[0], "layer_drop": 0.0}, STAGES[1]), layer_drop=0.3).train()
    calls = [0] * 3
    for place, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda *_, place=place: calls.__setitem__(place, calls[place] + 1))
    x_BTD, wanted = torch.randn(1, 16, 20), [0] * 3
    for seed in range(12):
        torch.manual_seed(seed)
        kept = [True, *(torch.rand(()) >= 0.3 for _ in range(2))]  # the first stage draws nothing
        wanted = [count + int(keep) for count, keep in zip(wanted, kept, strict=True)]
        torch.manual_seed(seed)
        with torch.no_grad():
            encoder(x_BTD)
    assert calls == wanted
    assert calls[0] == 12 > max(calls[1:])


def test_the_published_experiments_skip_layers_in_the_second_stage_alone() -> None:
    for name in ("spiral_base", "essl"):
        encoder = resolved(compose("pretrain", [f"experiment={name}", "data.shards=nowhere"]))["encoder"]
        assert [stage.get("layer_drop", encoder["layer_drop"]) for stage in encoder["stages"]] == [0.0, 0.05]


def test_layers_of_a_higher_rate_come_on_the_outputs_clock() -> None:
    encoder = small()
    output = encoder(torch.randn(1, 50, 20), layers=True)
    assert [layer.shape[1] for layer in output.layers] == [output.last_BTD.shape[1]] * 4
    assert [layer.shape[2] for layer in output.layers] == [16, 16, 24, 24]
    assert encoder.clock(FrameClock()).stride_samples == 8


@pytest.mark.parametrize("frames", [9, 17, 33, 50])
def test_frames_of_a_higher_rate_are_those_of_the_outputs_centres(frames: int) -> None:
    late = {"convolutions": [[16, 5, 2], [16, 5, 2]], "num_layers": 1, "ffn_dim": 24}
    encoder = small(stages=({**STAGES[0], "convolutions": [[16, 5, 1]]}, late))
    x_BTD = torch.randn(1, frames, 20)
    with torch.no_grad():
        first = small(stages=({**STAGES[0], "convolutions": [[16, 5, 1]]}, late))(x_BTD, layers=True).layers[0]
        whole = encoder.shorten[0](x_BTD, None)[0]
        whole = whole + encoder.positions[0](whole)
        whole = encoder.norms[0](whole)
    torch.testing.assert_close(first, whole[:, ::4])
    assert first.shape[1] == encoder(x_BTD).last_BTD.shape[1] == -(-frames // 4)


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_last_stage_without_blocks_shortens_all_the_same(norm_first: bool) -> None:
    encoder = small(stages=(STAGES[0], {**STAGES[1], "num_layers": 0}), norm_first=norm_first)
    output = encoder(torch.randn(1, 80, 20), layers=True)
    frames = encoder.clock(FrameClock()).num_frames(80)
    assert output.last_BTD.shape == (1, frames, 24)
    assert [layer.shape[1] for layer in output.layers] == [frames] * 2


def test_a_stage_without_a_convolution_and_an_even_kernel_are_refused() -> None:
    with pytest.raises(ConfigError, match="begins with a convolution"):
        small(stages=())
    with pytest.raises(ConfigError, match="layer_drop=1"):
        small(stages=({**STAGES[0], "layer_drop": 1.0},))
    with pytest.raises(ConfigError, match="without the last gate"):
        Shortening(4, [[8, 3, 2]], gated=True, last_activation=False)
    with pytest.raises(ConfigError, match="no centre"):
        small(stages=({"convolutions": [[8, 4, 2]], "num_layers": 1, "ffn_dim": 8},))
