import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import RoFormerConfig
from transformers.models.roformer.modeling_roformer import RoFormerSelfAttention, RoFormerSinusoidalPositionalEmbedding

from ossicle.core.errors import ConfigError
from ossicle.mixer.rotary import Rotary
from ossicle.ops.rotary import rotary_angles, rotate
from tests.mixer.loops import array, macs, mapped, noisy, num_parameters, softmax_means

DIM, HEADS = 24, 3
WIDTH = DIM // HEADS


def twin(mixer: Rotary) -> RoFormerSelfAttention:
    """transformers' attention of RoFormer with the mixer's weights: its pairs are neighbours, ours i and i + K/2."""
    theirs = RoFormerSelfAttention(RoFormerConfig(hidden_size=DIM, num_attention_heads=HEADS, rotary_value=False))
    order = torch.arange(DIM).view(HEADS, 2, WIDTH // 2).transpose(1, 2).flatten()
    with torch.no_grad():
        for name in ("query", "key"):
            getattr(theirs, name).weight.copy_(getattr(mixer, name).weight[order])
            getattr(theirs, name).bias.copy_(getattr(mixer, name).bias[order])
    theirs.value.load_state_dict(mixer.value.state_dict())
    return theirs.eval()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_it_equals_transformers_roformer_with_padding_and_without(backend: str) -> None:
    mixer = noisy(Rotary(DIM, HEADS, backend=backend))
    embedding = RoFormerSinusoidalPositionalEmbedding(64, WIDTH)
    embedding.weight.data.copy_(embedding.create_weight())
    x_BTD = torch.randn(2, 40, DIM)
    valid_BT = torch.arange(40) < torch.tensor([[40], [23]])
    places = embedding(x_BTD.shape[:2])[None, None]
    theirs = mixer.out(twin(mixer)(x_BTD, sinusoidal_pos=places)[0])
    torch.testing.assert_close(mixer(x_BTD), theirs, atol=1e-5, rtol=1e-5)
    hidden = torch.zeros(2, 1, 1, 40).masked_fill(~valid_BT[:, None, None], torch.finfo(torch.float32).min)
    theirs = mixer.out(twin(mixer)(x_BTD, hidden, sinusoidal_pos=places)[0])
    torch.testing.assert_close(mixer(x_BTD, valid_BT)[valid_BT], theirs[valid_BT], atol=1e-5, rtol=1e-5)


def test_packed_utterances_are_turned_by_the_base_that_is_named() -> None:
    mixer = noisy(Rotary(DIM, HEADS, base=50.0)).double()
    utterances = [torch.randn(length, DIM, dtype=torch.float64) for length in (5, 9)]
    edges = torch.tensor([0, 5, 14], dtype=torch.int32)
    expected = torch.cat([mixer(x_TD[None])[0] for x_TD in utterances])
    torch.testing.assert_close(mixer.packed(torch.cat(utterances), edges, 9), expected)


def test_it_equals_a_loop_in_float64() -> None:
    mixer = noisy(Rotary(DIM, HEADS, base=50.0)).double()
    x_TD = torch.randn(7, DIM, dtype=torch.float64)
    q_THK, k_THK, v_THK = (mapped(linear, array(x_TD), HEADS) for linear in (mixer.query, mixer.key, mixer.value))
    half = WIDTH // 2
    q_THC, k_THC = (x[..., :half] + 1j * x[..., half:] for x in (q_THK, k_THK))
    frequency_C = 50.0 ** -(2 * np.arange(half) / WIDTH)

    def score(head: int, query: int, key: int) -> float:
        turned = q_THC[query, head] * np.exp(1j * (query - key) * frequency_C)
        return float((turned * k_THC[key, head].conj()).real.sum()) / math.sqrt(WIDTH)

    expected = mapped(mixer.out, softmax_means(score, v_THK).reshape(7, DIM))[:, 0]
    np.testing.assert_allclose(array(mixer(x_TD[None]))[0], expected, atol=1e-5)  # angles are in float32


def test_packed_places_start_anew_in_each_utterance() -> None:
    mixer = noisy(Rotary(DIM, HEADS))
    x_PD = torch.randn(12, DIM)
    seen = []

    def look(q_PHK: torch.Tensor, _k: torch.Tensor, v_PHK: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        seen.append(q_PHK)
        return v_PHK

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ossicle.mixer.rotary.attend_packed", look)
        mixer.packed(x_PD, torch.tensor([0, 5, 5, 12]), 7)
    places_P = torch.tensor([*range(5), *range(7)])
    expected = rotate(mixer.heads(x_PD)[0], rotary_angles(places_P, WIDTH))
    torch.testing.assert_close(seen[0], expected)


def test_its_gradients_pass_gradcheck() -> None:
    mixer = noisy(Rotary(4, num_heads=2)).double()
    x_BTD = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_plain_attention() -> None:
    dim, frames, rows = 768, 100, 2
    with torch.device("meta"):
        mixer: nn.Module = Rotary(dim)
    assert num_parameters(mixer) == 4 * (dim * dim + dim)
    assert macs(lambda: Rotary(dim), rows, frames, dim) == rows * (4 * frames * dim**2 + 2 * frames**2 * dim)


def test_heads_of_odd_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="odd width 3"):
        Rotary(9, num_heads=3)
