import math

import numpy as np
import pytest
import torch
from torch import nn

from ossicle.core.errors import ConfigError
from ossicle.mixer.strided_attention import StridedAttention
from tests.mixer.loops import array, dependence, macs, mapped, noisy, num_parameters, softmax_means

DIM, HEADS = 24, 3
PLACE = np.arange(30)
APART = PLACE[:, None] - PLACE
NEAR, FAR = np.abs(APART) <= 4, APART % 4 == 0


@pytest.mark.parametrize("pattern", ["split", "merged"])
def test_it_equals_a_loop_in_float64(pattern: str) -> None:
    mixer = noisy(StridedAttention(DIM, HEADS, stride=4, pattern=pattern)).double()
    x_TD = torch.randn(30, DIM, dtype=torch.float64)
    q_THK, k_THK, v_THK = (mapped(linear, array(x_TD), HEADS) for linear in (mixer.query, mixer.key, mixer.value))

    def mixed(seen: np.ndarray) -> np.ndarray:
        return softmax_means(
            lambda h, i, j: q_THK[i, h] @ k_THK[j, h] / math.sqrt(DIM // HEADS), v_THK, lambda i, j: bool(seen[i, j])
        )

    # split: two of three heads are near ones
    split_THK = np.concatenate([mixed(NEAR)[:, :2], mixed(FAR)[:, 2:]], 1)
    mixed_THK = mixed(NEAR | FAR) if pattern == "merged" else split_THK
    expected = mapped(mixer.out, mixed_THK.reshape(30, DIM))[:, 0]
    np.testing.assert_allclose(array(mixer(x_TD[None]))[0], expected, atol=1e-12)


@pytest.mark.parametrize("pattern", ["split", "merged"])
def test_a_frame_depends_on_near_frames_and_every_strideth_and_two_layers_reach_all(pattern: str) -> None:
    mixer = noisy(StridedAttention(DIM, HEADS, stride=4, pattern=pattern))
    np.testing.assert_array_equal(dependence(mixer, 30, DIM), NEAR | FAR)
    two = noisy(nn.Sequential(*(StridedAttention(DIM, HEADS, stride=4, pattern=pattern) for _ in range(2))))
    assert dependence(two, 30, DIM).all()


@pytest.mark.parametrize("pattern", ["split", "merged"])
def test_its_gradients_pass_gradcheck(pattern: str) -> None:
    mixer = noisy(StridedAttention(4, num_heads=2, stride=2, pattern=pattern)).double()
    x_BTD = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_the_formula() -> None:
    dim, rows, stride = 768, 2, 32
    with torch.device("meta"):
        mixer: nn.Module = StridedAttention(dim)
    assert num_parameters(mixer) == 4 * (dim * dim + dim)
    for frames in (640, 6400):
        # half of the heads: three blocks of near frames; the other half: every stride-th
        near, far = 2 * frames * 3 * stride * dim // 2, 2 * frames * (frames // stride) * dim // 2
        assert macs(lambda: StridedAttention(dim), rows, frames, dim) == rows * (4 * frames * dim**2 + near + far)
        merged = rows * (4 * frames * dim**2 + 2 * (near + far))
        assert macs(lambda: StridedAttention(dim, pattern="merged"), rows, frames, dim) == merged


def test_what_makes_no_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match="stride=0"):
        StridedAttention(DIM, HEADS, stride=0)
    with pytest.raises(ConfigError, match="pattern='fixed' does not exist"):
        StridedAttention(DIM, HEADS, pattern="fixed")
    with pytest.raises(ConfigError, match="num_heads=1 cannot be split"):
        StridedAttention(DIM, num_heads=1)
