from functools import partial

import pytest
import torch
from torch import nn

from ossicle.core.errors import ConfigError
from ossicle.encoder.conformer import Conformer, ConformerBlock
from ossicle.layer.convolution_module import ConvolutionModule
from ossicle.meter.flops import count_macs
from ossicle.mixer.attention import Attention


def plain_module(module: ConvolutionModule, x_TD: torch.Tensor) -> torch.Tensor:
    """The convolution module on one utterance, frame by frame, channel by channel, from the paper's figure 2."""
    frames, dim = x_TD.shape
    gate = x_TD @ module.gate.weight.T + module.gate.bias
    gated = gate[:, :dim] * torch.sigmoid(gate[:, dim:])
    half = module.depthwise.kernel_size[0] // 2
    mixed = module.depthwise.bias.repeat(frames, 1)
    for t in range(frames):
        for tap in range(2 * half + 1):
            if 0 <= t + tap - half < frames:
                mixed[t] = mixed[t] + gated[t + tap - half] * module.depthwise.weight[:, 0, tap]
    normed = nn.functional.layer_norm(mixed, (dim,), module.norm.weight, module.norm.bias)
    return (normed * torch.sigmoid(normed)) @ module.out.weight.T + module.out.bias


def test_the_convolution_module_equals_a_loop_over_frames_in_float64() -> None:
    torch.manual_seed(0)
    module = ConvolutionModule(6, kernel=5, dropout=0.0).double()
    x_TD = torch.randn(9, 6, dtype=torch.float64)
    torch.testing.assert_close(module(x_TD[None])[0], plain_module(module, x_TD))


def test_a_block_is_the_papers_equation() -> None:
    block = ConformerBlock(
        Attention(8, num_heads=2, dropout=0.0), 8, 16, kernel=3, dropout=0.0, activation_dropout=0.0
    ).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    first = x + 0.5 * block.first(block.first_norm(x))
    mixed = first + block.mixer(block.mixer_norm(first))
    convolved = mixed + block.convolution(block.convolution_norm(mixed))
    expected = block.norm(convolved + 0.5 * block.second(block.second_norm(convolved)))
    torch.testing.assert_close(block(x), expected)


def test_an_even_kernel_is_refused_with_the_nearest_odd_ones() -> None:
    with pytest.raises(ConfigError, match="29 or 31"):
        Conformer(partial(Attention, num_heads=2), dim=8, num_layers=1, ffn_dim=8, kernel=30, position_groups=2)


def test_its_parameters_and_multiplications_are_those_of_the_formula() -> None:
    dim, ffn, kernel, frames, position, groups = 16, 32, 5, 20, 8, 4
    with torch.device("meta"):
        encoder = Conformer(
            partial(Attention, num_heads=2, dropout=0.0), dim=dim, num_layers=2, ffn_dim=ffn, kernel=kernel,
            position_kernel=position, position_groups=groups,
        ).eval()  # fmt: skip
    feed_forward = 2 * dim * ffn + ffn + dim
    module = 2 * dim * dim + 2 * dim + dim * kernel + dim + 2 * dim + dim * dim + dim
    block = 2 * feed_forward + 4 * (dim * dim + dim) + module + 5 * 2 * dim
    placing = dim * dim // groups * position + position + dim
    assert sum(p.numel() for p in encoder.parameters()) == 2 * block + placing + 2 * dim
    macs = 2 * (frames * (4 * dim * ffn + 4 * dim * dim + 3 * dim * dim + dim * kernel) + 2 * frames * frames * dim)
    x_BTD = torch.empty(1, frames, dim, device="meta")
    padded = frames + 1  # an even position kernel makes one frame more, which is cut off
    assert count_macs(lambda: encoder(x_BTD)) == macs + padded * dim * dim // groups * position
