import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from ossicle.mixer import alibi_attention
from ossicle.mixer.alibi_attention import AlibiAttention, AlibiAttentionStack
from ossicle.mixer.base import run_placed
from ossicle.ops.relative_position import alibi_slopes
from tests.mixer.loops import array, macs, mapped, noisy, num_parameters, softmax_means

DIM, HEADS = 24, 3


@pytest.mark.parametrize("num_heads", [1, 2, 8, 16])
def test_slopes_equal_transformers_mpt(num_heads: int) -> None:
    theirs_HT = build_mpt_alibi_tensor(num_heads, 2)[:, 0]  # the last key at distance 0, the one before at 1
    torch.testing.assert_close(torch.tensor(alibi_slopes(num_heads)), theirs_HT[:, 1] - theirs_HT[:, 0])


def test_twelve_heads_have_the_slopes_of_eight_and_four_of_sixteens() -> None:
    eight = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert alibi_slopes(12) == pytest.approx([*eight, *(2**-power for power in (0.5, 1.5, 2.5, 3.5))])


@pytest.mark.parametrize("budget", [2**28, HEADS * 9 * 2])
@pytest.mark.parametrize("places", [None, [0, 1, 4, 5, 6, 11, 30, 31, 40]])
def test_it_equals_a_loop_in_float64_in_blocks_too(
    budget: int, places: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = alibi_attention.attend_by_distance
    monkeypatch.setattr(
        alibi_attention, "attend_by_distance", lambda *args, **more: attend(*args, **more, budget=budget)
    )
    mixer = noisy(AlibiAttention(DIM, HEADS)).double()
    x_TD = torch.randn(9, DIM, dtype=torch.float64)
    q_THK, k_THK, v_THK = (mapped(linear, array(x_TD), HEADS) for linear in (mixer.query, mixer.key, mixer.value))
    assert mixer.scale is not None
    slopes = np.maximum(array(mixer.scale), 0) * [2**-4, 2**-8, 2**-2]  # two heads' slopes, then the first of four's
    where = range(9) if places is None else places

    def score(head: int, query: int, key: int) -> float:
        product = q_THK[query, head] @ k_THK[key, head] / math.sqrt(DIM // HEADS)
        return product - slopes[head] * abs(where[query] - where[key])

    expected = mapped(mixer.out, softmax_means(score, v_THK).reshape(9, DIM))[:, 0]
    mixer.place_BT = None if places is None else torch.tensor([places])
    np.testing.assert_allclose(array(mixer(x_TD[None]))[0], expected, atol=1e-7)  # slopes are in float32


def test_places_are_forgotten_where_a_block_fails() -> None:
    mixer = AlibiAttention(DIM, HEADS)
    with pytest.raises(RuntimeError):
        run_placed(lambda x_BTD, _: mixer(x_BTD[..., 1:]), mixer, torch.zeros(1, 3, DIM), None, torch.arange(3)[None])
    assert mixer.place_BT is None


def test_scales_begin_at_one_where_slopes_are_alibis_own() -> None:
    assert AlibiAttention(DIM, HEADS).slopes().tolist() == list(alibi_slopes(HEADS))


def test_scales_stand_once_among_the_weights_and_every_layer_trains_them() -> None:
    mixers = nn.ModuleList(AlibiAttentionStack(HEADS, 0.0).build([DIM] * 3))
    noisy(mixers)
    assert [key for key in mixers.state_dict() if "scale" in key] == ["0.scale"]
    mixers[2](torch.randn(1, 5, DIM)).square().sum().backward()
    grad = mixers[0].scale.grad
    assert isinstance(grad, torch.Tensor)
    assert grad.abs().sum() > 0


def test_a_scale_below_zero_makes_plain_attention_and_not_a_love_of_what_is_far() -> None:
    mixer = AlibiAttention(DIM, HEADS, dropout=0.0)
    assert mixer.scale is not None
    nn.init.constant_(mixer.scale, -1.0)
    x_BTD = torch.randn(1, 9, DIM)
    shuffled = torch.randperm(9)
    torch.testing.assert_close(mixer(x_BTD[:, shuffled]), mixer(x_BTD)[:, shuffled])


def test_its_gradients_pass_gradcheck() -> None:
    mixer = noisy(AlibiAttention(4, num_heads=2)).double()
    x_BTD = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_plain_attention_and_a_scale_a_head() -> None:
    dim, heads, frames, rows = 768, 12, 100, 2
    stack = AlibiAttentionStack()
    with torch.device("meta"):
        mixers = stack.build([dim] * 12)
    assert num_parameters(*mixers) == 12 * 4 * (dim * dim + dim) + heads
    assert macs(lambda: stack.build([dim])[0], rows, frames, dim) == rows * (4 * frames * dim**2 + 2 * frames**2 * dim)
