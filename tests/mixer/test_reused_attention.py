import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ossicle.core.errors import ConfigError
from ossicle.mixer.base import run_lending
from ossicle.mixer.reused_attention import ReusedAttention, ReusedAttentionStack
from tests.mixer.loops import array, macs, mapped, noisy, num_parameters, softmax_means

DIM, HEADS = 24, 3


def layers(num_layers: int = 2, num_reuses: int = 1) -> list[ReusedAttention]:
    built = ReusedAttentionStack(HEADS, 0.0, num_reuses).build([DIM] * num_layers)
    noisy(nn.ModuleList(built))
    return [mixer for mixer in built if isinstance(mixer, ReusedAttention)]


def lent_from(
    leader: ReusedAttention, x_BTD: Tensor, valid_BT: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    return run_lending(leader, leader, x_BTD, valid_BT, ())


@pytest.mark.parametrize("masked", [False, True])
def test_it_equals_the_map_of_torchs_multihead_attention_on_other_values(masked: bool) -> None:
    leader, follower = layers()
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    assert leader.query is not None
    assert leader.key is not None
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in (leader.query, leader.key, leader.value)]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in (leader.query, leader.key, leader.value)]))
    x_BTD, other_BTD = torch.randn(2, 2, 9, DIM).unbind()
    valid_BT = torch.arange(9) < torch.tensor([[9], [5]]) if masked else torch.ones(2, 9, dtype=torch.bool)
    _, lent = lent_from(leader, x_BTD, valid_BT)
    ours, relent = run_lending(follower, follower, other_BTD, valid_BT, lent)
    map_BHTT = theirs(x_BTD, x_BTD, x_BTD, key_padding_mask=~valid_BT, average_attn_weights=False)[1]
    v_BHTK = follower.value(other_BTD).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    expected = follower.out((map_BHTT @ v_BHTK).transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours[valid_BT], expected[valid_BT], atol=1e-5, rtol=1e-5)
    assert relent == ()


def test_it_equals_a_loop_in_float64() -> None:
    leader, follower = (one.double() for one in layers())
    assert leader.query is not None
    assert leader.key is not None
    x_BTD, other_BTD = torch.randn(2, 1, 6, DIM, dtype=torch.float64).unbind()
    q_THK, k_THK = (mapped(linear, array(x_BTD[0]), HEADS) for linear in (leader.query, leader.key))
    v_THK = mapped(follower.value, array(other_BTD[0]), HEADS)
    mixed = softmax_means(lambda h, i, j: q_THK[i, h] @ k_THK[j, h] / math.sqrt(DIM // HEADS), v_THK)
    ours, _ = run_lending(follower, follower, other_BTD, None, lent_from(leader, x_BTD)[1])
    np.testing.assert_allclose(array(ours)[0], mapped(follower.out, mixed.reshape(6, DIM))[:, 0], atol=1e-12)


def test_where_nothing_was_lent_the_leaders_maps_see_the_layers_own_frames() -> None:
    leader, follower = layers()
    x_BTD = torch.randn(2, 7, DIM)
    alone = follower(x_BTD)
    _, lent = lent_from(leader, x_BTD)
    torch.testing.assert_close(alone, run_lending(follower, follower, x_BTD, None, lent)[0])


def test_nothing_is_kept_from_one_call_to_the_next() -> None:
    leader, follower = layers()
    _, lent = lent_from(leader, torch.randn(1, 4, DIM))
    run_lending(follower, follower, torch.randn(1, 4, DIM), None, lent)
    for mixer in (leader, follower):
        assert (mixer.lends, mixer.lent, mixer.borrowed) == (False, (), ())
    with pytest.raises(RuntimeError):
        run_lending(follower, follower, torch.randn(1, 4, DIM + 1), None, lent)
    assert (follower.lends, follower.borrowed) == (False, ())


def test_groups_have_one_leader_and_its_reusers_and_a_new_width_starts_one() -> None:
    def leaders(num_reuses: int, dims: list[int]) -> list[int]:
        mixers = ReusedAttentionStack(HEADS, num_reuses=num_reuses).build(dims)
        owners = [mixer if mixer.creditor is None else mixer.creditor for mixer in mixers]  # ty: ignore[unresolved-attribute]
        return [mixers.index(owner) for owner in owners]

    assert leaders(1, [DIM] * 5) == [0, 0, 2, 2, 4]
    assert leaders(2, [DIM] * 5) == [0, 0, 0, 3, 3]
    assert leaders(0, [DIM] * 3) == [0, 1, 2]
    assert leaders(3, [DIM, DIM, 48, 48]) == [0, 0, 2, 2]


def test_maps_stand_once_among_the_weights_and_learn_from_every_layer_that_reuses_them() -> None:
    mixers = nn.ModuleList(layers(2))
    assert {key for key in mixers.state_dict() if "query" in key} == {"0.query.weight", "0.query.bias"}
    leader, follower = mixers
    _, lent = lent_from(leader, torch.randn(1, 4, DIM))
    run_lending(follower, follower, torch.randn(1, 4, DIM), None, lent)[0].square().sum().backward()
    assert leader.query.weight.grad.abs().sum() > 0
    assert leader.value.weight.grad is None


def test_blocks_that_are_run_again_in_the_backward_pass_borrow_again() -> None:
    leader, follower = layers()
    x_BTD = torch.randn(2, 5, DIM, requires_grad=True)

    def both(again: bool) -> Tensor:
        def run(
            mixer: ReusedAttention, borrowed: tuple[Tensor, ...], frames_BTD: Tensor
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            if again:
                return checkpoint(run_lending, mixer, mixer, frames_BTD, None, borrowed, use_reentrant=False)
            return run_lending(mixer, mixer, frames_BTD, None, borrowed)

        mid_BTD, lent = run(leader, (), x_BTD)
        return torch.autograd.grad(run(follower, lent, mid_BTD)[0].square().sum(), x_BTD)[0]

    torch.testing.assert_close(both(again=True), both(again=False))


def test_its_gradients_pass_gradcheck() -> None:
    leader, follower = (one.double() for one in layers())
    x_BTD = torch.randn(1, 3, DIM, dtype=torch.float64, requires_grad=True)

    def both(x_BTD: Tensor) -> Tensor:
        mid_BTD, lent = lent_from(leader, x_BTD)
        return run_lending(follower, follower, mid_BTD, None, lent)[0]

    assert torch.autograd.gradcheck(both, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_the_formula() -> None:
    dim, frames, rows = 768, 100, 2
    stack = ReusedAttentionStack()
    with torch.device("meta"):
        mixers = stack.build([dim] * 12)
    assert num_parameters(*mixers) == 6 * (4 + 2) * (dim * dim + dim)

    class Borrows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leader, self.follower = stack.build([dim] * 2)

        def forward(self, x_BTD: Tensor) -> Tensor:
            lent = x_BTD.unflatten(-1, (12, -1))
            return run_lending(self.follower, self.follower, x_BTD, None, (lent, lent))[0]

    assert macs(lambda: stack.build([dim])[0], rows, frames, dim) == rows * (4 * frames * dim**2 + 2 * frames**2 * dim)
    assert macs(Borrows, rows, frames, dim) == rows * (2 * frames * dim**2 + 2 * frames**2 * dim)


def test_a_negative_count_of_reuses_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_reuses=-1"):
        ReusedAttentionStack(num_reuses=-1)
