from functools import partial

import pytest
import torch
from torch import nn

from ossicle.encoder.recurrent import Recurrent
from ossicle.mixer.attention import Attention


def test_it_equals_torchs_gru_module() -> None:
    encoder = Recurrent(partial(Attention), dim=8, num_layers=2)
    x_BTD = torch.randn(3, 11, 8)
    theirs = nn.GRU(8, 8, num_layers=2, batch_first=True)
    names = ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l")
    for layer, block in enumerate(encoder.blocks):
        for name, weight in zip(names, block.weights, strict=True):
            getattr(theirs, f"{name}{layer}").data = weight.data
    torch.testing.assert_close(encoder(x_BTD).last_BTD, theirs(x_BTD)[0])


def test_no_frame_hears_what_comes_after_it() -> None:
    encoder = Recurrent(partial(Attention), dim=8)
    x_BTD = torch.randn(1, 12, 8, requires_grad=True)
    encoder(x_BTD).last_BTD[0, 5].sum().backward()
    assert x_BTD.grad is not None
    heard = x_BTD.grad[0].abs().sum(-1) > 0
    assert heard[:6].all()
    assert not heard[6:].any()


def test_weights_begin_as_torchs_own_within_one_over_the_root_of_the_width() -> None:
    torch.manual_seed(0)
    for block in Recurrent(partial(Attention), dim=64).blocks:
        for weight in block.weights:
            assert weight.abs().max() <= 64**-0.5
            assert weight.std().item() == pytest.approx((3 * 64) ** -0.5, rel=0.1)
