import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from ossicle.core.errors import ConfigError
from ossicle.mixer import relative_attention
from ossicle.mixer.base import run_placed
from ossicle.mixer.relative_attention import RelativeAttention, RelativeAttentionStack
from tests.mixer.loops import array, macs, mapped, noisy, num_parameters, softmax_means

DIM, HEADS, BUCKETS, FARTHEST = 24, 3, 8, 12


def layers(num_layers: int = 2, head_dim: int | None = None) -> list[RelativeAttention]:
    built = RelativeAttentionStack(HEADS, 0.0, BUCKETS, FARTHEST, head_dim).build([DIM] * num_layers)
    noisy(nn.ModuleList(built))
    return [mixer for mixer in built if isinstance(mixer, RelativeAttention)]


def twin(mixer: RelativeAttention) -> WavLMAttention:
    """transformers' attention of WavLM with the mixer's weights."""
    owns = mixer.distance_bias is not None
    theirs = WavLMAttention(DIM, HEADS, 0.0, BUCKETS, FARTHEST, has_relative_position_bias=owns)
    for name, part in (("q", mixer.query), ("k", mixer.key), ("v", mixer.value), ("out", mixer.out)):
        getattr(theirs, f"{name}_proj").load_state_dict(part.state_dict())
    theirs.gru_rel_pos_linear.load_state_dict(mixer.gate.state_dict())
    with torch.no_grad():
        theirs.gru_rel_pos_const.copy_(mixer.gate_scale.view(1, -1, 1, 1))
        if mixer.distance_bias is not None:
            theirs.rel_attn_embed.weight.copy_(mixer.distance_bias.weight)
    return theirs.eval()


@pytest.mark.parametrize("masked", [False, True])
def test_two_layers_equal_transformers_wavlm_which_hands_the_bias_on(masked: bool) -> None:
    mixers = layers()
    x_BTD = torch.randn(2, 40, DIM)
    valid_BT = torch.arange(40) < torch.tensor([[40], [23]]) if masked else None
    mask_BT = None if valid_BT is None else valid_BT.long()
    ours, theirs, bias = x_BTD, x_BTD, None
    kept = torch.ones(2, 40, dtype=torch.bool) if valid_BT is None else valid_BT
    for mixer in mixers:
        ours = mixer(ours, valid_BT)
        theirs, _, bias = twin(mixer)(theirs, attention_mask=mask_BT, position_bias=bias)
        torch.testing.assert_close(ours[kept], theirs[kept], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", [2**28, HEADS * 9 * 2])
@pytest.mark.parametrize("head_dim", [None, 5])
def test_it_equals_a_loop_in_float64_in_blocks_too(
    budget: int, head_dim: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = relative_attention.attend_by_distance
    monkeypatch.setattr(
        relative_attention, "attend_by_distance", lambda *args, **more: attend(*args, **more, budget=budget)
    )
    owner, mixer = (one.double() for one in layers(head_dim=head_dim))
    assert owner.distance_bias is not None
    x_TD = torch.randn(9, DIM, dtype=torch.float64)
    x, frames = array(x_TD), 9
    q_THK, k_THK, v_THK = (mapped(linear, x, HEADS) for linear in (mixer.query, mixer.key, mixer.value))
    # two sides of four buckets: distances 0 and 1 exact, 2 to 12 on a log scale (to 4.9 and beyond)
    side = [min(3, d if d < 2 else int(2 + math.log(d / 2) / math.log(6) * 2)) for d in range(frames)]
    scores = array(owner.distance_bias.weight)
    parts_TH24 = (x.reshape(frames, HEADS, -1) @ array(mixer.gate.weight).T + array(mixer.gate.bias)).reshape(
        frames, HEADS, 2, 4
    )
    gates_TH2 = 1 / (1 + np.exp(-parts_TH24.sum(-1)))

    def score(head: int, query: int, key: int) -> float:
        update, reset = gates_TH2[query, head]
        distance = scores[side[abs(key - query)] + (4 if key > query else 0), head]
        # the paper's sum: the bias, and a mean of it with its scaled and reset self
        reset_distance = array(mixer.gate_scale)[head] * reset * distance
        gated = distance + (1 - update) * distance + update * reset_distance
        return q_THK[query, head] @ k_THK[key, head] / math.sqrt(head_dim or DIM // HEADS) + gated

    mixed_TD = softmax_means(score, v_THK).reshape(frames, -1)
    expected = mapped(mixer.out, mixed_TD)[:, 0]
    np.testing.assert_allclose(array(mixer(x_TD[None]))[0], expected, atol=1e-12)


def test_the_bias_stands_once_among_the_weights_and_every_layer_trains_it() -> None:
    mixers = nn.ModuleList(layers(3))
    assert [key for key in mixers.state_dict() if "distance_bias" in key] == ["0.distance_bias.weight"]
    mixers[2](torch.randn(1, 5, DIM)).square().sum().backward()
    grad = mixers[0].distance_bias.weight.grad
    assert grad is not None
    assert grad.abs().sum() > 0


def test_gates_that_read_nothing_pass_seven_quarters_of_the_bias() -> None:
    mixer = RelativeAttention(DIM, HEADS)
    nn.init.zeros_(mixer.gate.weight)
    torch.testing.assert_close(mixer.gates(torch.randn(2, 5, DIM)), torch.full((2, HEADS, 5), 1.75))


def test_its_gradients_pass_gradcheck() -> None:
    mixer = layers(1)[0].double()
    x_BTD = torch.randn(1, 3, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_the_formula() -> None:
    dim, heads, frames, rows = 768, 12, 100, 2
    stack = RelativeAttentionStack()
    with torch.device("meta"):
        mixers = stack.build([dim] * 12)
    each = 4 * (dim * dim + dim) + (dim // heads + 1) * 8 + heads
    assert num_parameters(*mixers) == 12 * each + 320 * heads
    expected = rows * (4 * frames * dim**2 + 2 * frames**2 * dim + frames * dim * 8)
    assert macs(lambda: stack.build([dim])[0], rows, frames, dim) == expected


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(6, 800), (2, 800), (320, 80)])
def test_buckets_that_cannot_be_made_are_refused(num_buckets: int, max_distance: int) -> None:
    with pytest.raises(ConfigError, match="makes no buckets"):
        RelativeAttention(DIM, HEADS, num_buckets=num_buckets, max_distance=max_distance)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(8, 3), (8, 12), (320, 800)])
def test_frames_that_are_told_their_places_take_the_bias_of_their_distances(
    num_buckets: int, max_distance: int
) -> None:
    mixer = noisy(RelativeAttention(DIM, HEADS, num_buckets=num_buckets, max_distance=max_distance))
    x_BTD = torch.randn(2, 30, DIM)
    placed_BTD = run_placed(mixer, mixer, x_BTD, None, torch.arange(30).expand(2, -1))
    torch.testing.assert_close(placed_BTD, mixer(x_BTD), atol=1e-5, rtol=1e-5)
