from functools import partial

import torch
from torch.nn import functional

from ossicle.encoder.convolutional import Convolutional
from ossicle.mixer.attention import Attention


def small() -> Convolutional:
    torch.manual_seed(0)
    return Convolutional(partial(Attention, num_heads=2), dim=8, num_layers=3, kernel=3)


def test_no_frame_hears_what_comes_after_it() -> None:
    encoder = small()
    x_BTD = torch.randn(1, 12, 8, requires_grad=True)
    encoder(x_BTD).last_BTD[0, 5].sum().backward()
    assert x_BTD.grad is not None
    heard = x_BTD.grad[0].abs().sum(-1) > 0
    assert not heard[6:].any()
    assert heard[5]


def test_each_layer_is_a_causal_convolution_with_a_residual() -> None:
    encoder = small()
    x_BTD = torch.randn(2, 9, 8)
    expected = x_BTD
    for block in encoder.blocks:
        mixed = torch.stack(
            [
                sum(
                    (
                        expected[:, t + tap - 2] @ block.convolution.weight[:, :, tap].T
                        for tap in range(3)
                        if t + tap - 2 >= 0
                    ),
                    start=block.convolution.bias.expand(2, 8),
                )
                for t in range(9)
            ],
            dim=1,
        )
        expected = expected + functional.relu(functional.layer_norm(mixed, (8,)))
    torch.testing.assert_close(encoder(x_BTD).last_BTD, expected, atol=1e-5, rtol=1e-5)
