import numpy as np
import torch
from torch import nn

from ossicle.mixer.linear_attention import LinearAttention
from tests.mixer.loops import array, macs, mapped, noisy, num_parameters

DIM, HEADS = 24, 3


def features(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x + 1, np.exp(x))


def test_it_equals_a_loop_in_float64() -> None:
    mixer = noisy(LinearAttention(DIM, HEADS)).double()
    x_TD = torch.randn(7, DIM, dtype=torch.float64)
    q_THK, k_THK, v_THK = (mapped(linear, array(x_TD), HEADS) for linear in (mixer.query, mixer.key, mixer.value))
    mixed_THK = np.zeros_like(v_THK)
    for i, h in np.ndindex(7, HEADS):
        weights = np.array([features(q_THK[i, h]) @ features(k_THK[j, h]) for j in range(7)])
        mixed_THK[i, h] = weights / weights.sum() @ v_THK[:, h]
    expected = mapped(mixer.out, mixed_THK.reshape(7, DIM))[:, 0]
    np.testing.assert_allclose(array(mixer(x_TD[None]))[0], expected, atol=1e-12)


def test_its_gradients_pass_gradcheck() -> None:
    mixer = noisy(LinearAttention(4, num_heads=2)).double()
    x_BTD = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_the_formula() -> None:
    dim, heads, rows = 768, 12, 2
    width = dim // heads
    with torch.device("meta"):
        mixer: nn.Module = LinearAttention(dim)
    assert num_parameters(mixer) == 4 * (dim * dim + dim)
    for frames in (100, 1000):
        # sums of keys and values, their products with queries, and the products that normalise
        expected = rows * (4 * frames * dim**2 + 2 * frames * dim * width + frames * dim)
        assert macs(lambda: LinearAttention(dim), rows, frames, dim) == expected
