import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from ossicle.encoder.transformer import Transformer
from ossicle.mixer import alibi_attention
from ossicle.mixer.alibi_attention import AlibiAttention, AlibiAttentionStack
from ossicle.mixer.base import MixerFactory, run_placed
from ossicle.mixer.rotary import Rotary
from ossicle.ops.relative_position import alibi_slopes
from tests.mixer.loops import array, macs, mapped, noisy, num_parameters, softmax_means

DIM, HEADS = 24, 3
PLACED: dict[str, MixerFactory] = {
    "alibi": AlibiAttentionStack(HEADS, 0.0),
    "rotary": lambda dim: Rotary(dim, HEADS, 0),
}


def transformer(key: str) -> Transformer:
    sizes = {"dim": DIM, "num_layers": 2, "ffn_dim": 32, "position_kernel": 4, "position_groups": 4}
    return noisy(Transformer(PLACED[key], **sizes, dropout=0.0, layer_drop=0.0))


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


@pytest.mark.parametrize("key", PLACED)
def test_frames_that_are_kept_hear_each_other_as_if_the_others_were_silent(key: str) -> None:
    encoder = transformer(key).eval()
    x_BTD = torch.randn(2, 12, DIM)
    kept_BM = torch.tensor([[0, 3, 4, 11], [1, 2, 8, 9]])
    kept_BT = torch.zeros(2, 12, dtype=torch.bool).scatter(1, kept_BM, True)
    alone_BMD = encoder(x_BTD, kept_BM=kept_BM).last_BTD
    placed_BTD = encoder.norm(x_BTD + encoder.position(x_BTD))
    for block in encoder.blocks:
        placed_BTD = block(placed_BTD, kept_BT)
    torch.testing.assert_close(alone_BMD.flatten(0, 1), placed_BTD[kept_BT], atol=1e-5, rtol=1e-5)
    # closer together they hear each other otherwise
    near_BMD = encoder(placed := x_BTD.gather(1, kept_BM[..., None].expand(-1, -1, DIM))).last_BTD
    assert placed.shape == near_BMD.shape
    assert not torch.allclose(near_BMD, alone_BMD, atol=1e-3)


@pytest.mark.parametrize("key", PLACED)
@pytest.mark.parametrize("recompute", [False, True])
def test_blocks_with_places_compile_once_a_shape_and_have_the_same_gradients(key: str, recompute: bool) -> None:
    torch._dynamo.reset()
    plain = transformer(key)
    built = copy.deepcopy(plain)
    for block in built.blocks:
        assert isinstance(block, nn.Module)
        block.recompute = recompute
        block.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    x_BTD = torch.randn(2, 12, DIM)

    def gradients(encoder: Transformer, kept_BM: torch.Tensor) -> list[torch.Tensor]:
        encoder.zero_grad()
        encoder(x_BTD, kept_BM=kept_BM).last_BTD.square().sum().backward()
        return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]

    for kept in ([[0, 3, 4, 11], [1, 2, 8, 9]], [[0, 1, 2, 3], [7, 8, 9, 11]]):
        kept_BM = torch.tensor(kept)
        torch.testing.assert_close(gradients(built, kept_BM), gradients(plain, kept_BM), atol=1e-5, rtol=1e-4)
    with torch.compiler.set_stance("fail_on_recompile"):
        built(x_BTD, kept_BM=torch.tensor([[2, 3, 5, 7], [0, 1, 8, 10]]))


def test_places_are_forgotten_where_a_block_fails() -> None:
    mixer = AlibiAttention(DIM, HEADS)
    with pytest.raises(RuntimeError):
        run_placed(lambda x_BTD, _: mixer(x_BTD[..., 1:]), mixer, torch.zeros(1, 3, DIM), None, torch.arange(3)[None])
    assert mixer.place_BT is None


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
