import math

import numpy as np
import torch
from torch import nn

from ossicle.mixer.key_query_attention import KeyQueryAttention
from tests.mixer.loops import array, dependence, macs, mapped, noisy, num_parameters

DIM, HEADS = 24, 3


def softmax(x_THK: np.ndarray) -> np.ndarray:
    shares = np.exp(x_THK - x_THK.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def test_it_equals_a_loop_in_float64() -> None:
    mixer = noisy(KeyQueryAttention(DIM, HEADS)).double()
    with torch.no_grad():
        mixer.shares.copy_(torch.tensor([0.7, 0.4]))
    frames = 9
    x_TD = torch.randn(frames, DIM, dtype=torch.float64)
    q_THK, k_THK, v_THK = (mapped(linear, array(x_TD), HEADS) for linear in (mixer.query, mixer.key, mixer.value))
    q_THK, k_THK = softmax(q_THK), softmax(k_THK)
    mixed_THK = np.zeros_like(v_THK)
    for i, h in np.ndindex(frames, HEADS):
        near = [math.cos(math.pi * (i - j) / (2 * frames)) for j in range(frames)]
        on = np.array([near[j] * (q_THK[i, h] @ k_THK[j, h]) for j in range(frames)])
        off = np.array([near[j] * ((1 - q_THK[i, h]) @ (1 - k_THK[j, h])) for j in range(frames)])
        mixed_THK[i, h] = (0.7 * on / on.sum() + 0.4 * off / off.sum()) @ v_THK[:, h]
    expected = mapped(mixer.out, mixed_THK.reshape(frames, DIM))[:, 0]
    np.testing.assert_allclose(array(mixer(x_TD[None]))[0], expected, atol=1e-6)  # places are in float32


def test_both_means_begin_with_half_a_share_each() -> None:
    assert KeyQueryAttention(DIM, HEADS).shares.tolist() == [0.5, 0.5]


def test_a_share_below_zero_counts_for_nothing() -> None:
    mixer = noisy(KeyQueryAttention(DIM, HEADS))
    x_BTD = torch.randn(1, 5, DIM)
    outputs = []
    for share in (-1.0, 0.0):
        with torch.no_grad():
            mixer.shares.copy_(torch.tensor([0.5, share]))
        outputs.append(mixer(x_BTD))
    assert torch.equal(*outputs)


def test_every_frame_depends_on_every_frame() -> None:
    mixer = noisy(KeyQueryAttention(DIM, HEADS))
    nn.init.constant_(mixer.shares, 0.5)
    assert dependence(mixer, 20, DIM).all()


def test_its_gradients_pass_gradcheck() -> None:
    mixer = noisy(KeyQueryAttention(4, num_heads=2)).double()
    nn.init.constant_(mixer.shares, 0.5)
    x_BTD = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_the_formula() -> None:
    dim, heads, rows = 768, 12, 2
    width = dim // heads
    with torch.device("meta"):
        mixer: nn.Module = KeyQueryAttention(dim)
    assert num_parameters(mixer) == 4 * (dim * dim + dim) + 2
    for frames in (100, 1000):
        # twice the linear attention of features of twice the width: cosine and sine, both on and both off
        features = 2 * (2 * frames * 2 * dim * width + frames * 2 * dim)
        assert macs(lambda: KeyQueryAttention(dim), rows, frames, dim) == rows * (4 * frames * dim**2 + features)
