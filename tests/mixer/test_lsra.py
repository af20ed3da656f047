import numpy as np
import pytest
import torch
from torch import nn

from ossicle.core.errors import ConfigError
from ossicle.meter.flops import count_macs
from ossicle.mixer.convolution import KINDS
from ossicle.mixer.lsra import LSRA
from tests.mixer.leaks import everything, known, noisy
from tests.mixer.loops import Array, attention, check_padded_rows, convolution

DIM = 8


def build(kind: str) -> LSRA:
    mixer = noisy(LSRA(DIM, num_heads=2, kind=kind, kernel=3))
    assert isinstance(mixer, LSRA)
    return mixer


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_half_is_torchs_attention_and_the_second_the_convolution(kind: str) -> None:
    mixer = build(kind)
    theirs = nn.MultiheadAttention(DIM // 2, 2, batch_first=True, dtype=torch.float64)
    part = mixer.attention
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([x.weight for x in (part.query, part.key, part.value)]))
        theirs.in_proj_bias.copy_(torch.cat([x.bias for x in (part.query, part.key, part.value)]))
        theirs.out_proj.load_state_dict(part.out.state_dict())
    x_BTD = torch.randn(2, 9, DIM, dtype=torch.float64)
    valid_BT = torch.arange(9) < torch.tensor([[9], [6]])
    far_BTD, near_BTD = x_BTD[..., : DIM // 2], x_BTD[..., DIM // 2 :]
    out_BTD = mixer(x_BTD, valid_BT)
    expected = theirs(far_BTD, far_BTD, far_BTD, key_padding_mask=~valid_BT)[0]
    torch.testing.assert_close(out_BTD[valid_BT][:, : DIM // 2], expected[valid_BT], atol=1e-10, rtol=1e-10)
    expected = mixer.convolution(near_BTD, valid_BT)
    torch.testing.assert_close(out_BTD[valid_BT][:, DIM // 2 :], expected[valid_BT], atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_equal_a_float64_loop_over_each_alone(kind: str) -> None:
    mixer = build(kind)

    def loop(x_TD: Array) -> Array:
        far_TD, near_TD = np.split(x_TD, 2, axis=1)
        return np.concatenate([attention(mixer.attention, far_TD), convolution(mixer.convolution, near_TD)], 1)

    check_padded_rows(mixer, DIM, loop)


def test_every_frame_knows_every_real_frame_of_its_row_and_no_other() -> None:
    assert torch.equal(known(build("dynamic"), 7, DIM, [7, 5]), everything(7, 5))


def test_its_gradients_pass_gradcheck() -> None:
    mixer = build("dynamic")
    x_BTD = torch.randn(2, 4, DIM, dtype=torch.float64, requires_grad=True)
    valid_BT = torch.arange(4) < torch.tensor([[4], [2]])
    assert torch.autograd.gradcheck(lambda x: mixer(x, valid_BT)[valid_BT], (x_BTD,))


def test_its_parameters_and_products_are_those_of_the_formula() -> None:
    dim, heads, kernel, frames = 24, 3, 5, 50
    with torch.device("meta"):
        mixer = LSRA(dim, num_heads=heads, kernel=kernel).eval()
        x_BTD = torch.empty(2, frames, dim)
    half = dim // 2
    maps = 4 * half * half + 3 * half * half + half * heads * kernel
    assert sum(p.numel() for p in mixer.parameters()) == maps + 7 * half
    assert count_macs(lambda: mixer(x_BTD)) == 2 * frames * (maps + 2 * frames * half)


def test_an_odd_width_and_heads_that_do_not_divide_its_half_are_refused() -> None:
    with pytest.raises(ConfigError, match="the width 9 is odd"):
        LSRA(9)
    with pytest.raises(ConfigError, match="num_heads=8 does not divide the width 12"):
        LSRA(24, num_heads=8)
