import math

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from ossicle.ops.rotary import rotary_angles, rotate


def test_it_equals_a_loop_in_float64() -> None:
    torch.manual_seed(0)
    x_BTHK = torch.randn(2, 5, 3, 6, dtype=torch.float64)
    expected = np.zeros(x_BTHK.shape)
    for b, t, h, pair in np.ndindex(2, 5, 3, 3):
        angle = t * 100.0 ** (-2 * pair / 6)
        first, second = x_BTHK[b, t, h, pair].item(), x_BTHK[b, t, h, pair + 3].item()
        turned = complex(first, second) * complex(math.cos(angle), math.sin(angle))
        expected[b, t, h, pair], expected[b, t, h, pair + 3] = turned.real, turned.imag
    ours = rotate(x_BTHK, rotary_angles(torch.arange(5), 6, base=100.0))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)  # angles are in float32


def test_it_equals_transformers_llama() -> None:
    torch.manual_seed(0)
    q_BTHK, k_BTHK = torch.randn(2, 2, 50, 3, 8).unbind()
    theirs = LlamaRotaryEmbedding(LlamaConfig(hidden_size=24, num_attention_heads=3))
    cos, sin = theirs(q_BTHK, torch.arange(50)[None])
    expected = apply_rotary_pos_emb(q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), cos, sin)
    angle_TK = rotary_angles(torch.arange(50), 8)
    for ours, wanted in zip((rotate(q_BTHK, angle_TK), rotate(k_BTHK, angle_TK)), expected, strict=True):
        torch.testing.assert_close(ours, wanted.transpose(1, 2))


@hypothesis.given(place=st.integers(0, 2000), apart=st.integers(-500, 500))
def test_products_depend_on_distance_alone(place: int, apart: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64).unbind()

    def product(at: int) -> torch.Tensor:
        both = torch.tensor([[at], [at + apart]])
        return (rotate(q, rotary_angles(both[0], 8)) * rotate(k, rotary_angles(both[1], 8))).sum()

    torch.testing.assert_close(product(place), product(0), atol=2e-3, rtol=0)


def test_it_turns_in_float32_and_gives_back_the_type_that_came_in() -> None:
    x_BTHK = torch.randn(1, 3000, 1, 8)
    half = rotate(x_BTHK.bfloat16(), rotary_angles(torch.arange(3000), 8))
    assert half.dtype == torch.bfloat16
    exact = rotate(x_BTHK.bfloat16().float(), rotary_angles(torch.arange(3000), 8))
    torch.testing.assert_close(half.float(), exact, atol=0.02, rtol=0.01)
