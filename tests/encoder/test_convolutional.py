import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from ossicle.core.errors import ConfigError
from ossicle.encoder.convolutional import Convolutional
from ossicle.mixer.attention import Attention


def small(kernel: int = 3, growth: int = 0, scale: float | None = 1.0) -> Convolutional:
    torch.manual_seed(0)
    made = Convolutional(
        partial(Attention, num_heads=2), dim=8, num_layers=3, kernel=kernel, kernel_growth=growth, residual_scale=scale
    )
    for block in made.blocks:
        nn.init.normal_(block.norm.weight)
        nn.init.normal_(block.norm.bias)
    return made


def test_no_frame_hears_what_comes_after_it() -> None:
    encoder = small()
    x_BTD = torch.randn(1, 12, 8, requires_grad=True)
    encoder(x_BTD).last_BTD[0, 5].sum().backward()
    assert x_BTD.grad is not None
    heard = x_BTD.grad[0].abs().sum(-1) > 0
    assert not heard[6:].any()
    assert heard[5]


@pytest.mark.parametrize("scale", [None, 1.0, 0.5])
@pytest.mark.parametrize(("kernel", "growth"), [(3, 0), (2, 1)])
def test_each_layer_is_a_causal_convolution_by_a_loop_in_float64(kernel: int, growth: int, scale: float | None) -> None:
    encoder = small(kernel, growth, scale).double()
    x_BTD = torch.randn(2, 9, 8, dtype=torch.float64)
    expected_BTD = x_BTD
    for layer, block in enumerate(encoder.blocks):
        wide = kernel + layer * growth
        assert block.convolution.weight.shape == (8, 8, wide)
        mixed_BTD = torch.zeros_like(x_BTD)
        for row in range(2):
            for t in range(9):
                mixed_BTD[row, t] = block.convolution.bias
                for back in range(min(t + 1, wide)):
                    mixed_BTD[row, t] += block.convolution.weight[:, :, wide - 1 - back] @ expected_BTD[row, t - back]
        branch_BTD = functional.relu(functional.layer_norm(mixed_BTD, (8,), block.norm.weight, block.norm.bias))
        expected_BTD = branch_BTD if scale is None else math.sqrt(scale) * (expected_BTD + branch_BTD)
    torch.testing.assert_close(encoder(x_BTD).last_BTD, expected_BTD, atol=1e-12, rtol=1e-12)


def test_kernels_of_no_frame_and_scales_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"kernel_growth=-1 makes kernels of \[2, 1, 0\]"):
        small(2, -1)
    with pytest.raises(ConfigError, match="residual_scale=0"):
        small(scale=0.0)
