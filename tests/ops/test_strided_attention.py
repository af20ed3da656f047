from collections.abc import Callable

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from ossicle.ops.strided_attention import attend_columns, attend_merged
from tests.mixer.loops import array, softmax_means

Attend = Callable[..., Tensor]
PATTERNS = {
    attend_columns: lambda apart, stride: apart % stride == 0,
    attend_merged: lambda apart, stride: abs(apart) <= stride or apart % stride == 0,
}


def inputs(*shape: int) -> list[Tensor]:
    torch.manual_seed(sum(shape))
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("attend", PATTERNS)
@hypothesis.given(lengths=st.lists(st.integers(1, 17), min_size=1, max_size=3), stride=st.integers(1, 6))
@hypothesis.settings(max_examples=60, deadline=None)
def test_it_equals_a_loop_in_float64(attend: Attend, lengths: list[int], stride: int) -> None:
    q, k, v = inputs(len(lengths), max(lengths), 2, 3)
    valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    out = attend(q, k, v, stride, valid_BT=valid_BT)
    assert out.isfinite().all()
    for row, length in enumerate(lengths):
        q_THK, k_THK, v_THK = (array(x[row, :length]) for x in (q, k, v))
        expected = softmax_means(
            lambda h, i, j: q_THK[i, h] @ k_THK[j, h] / np.sqrt(3),  # noqa: B023  called at once
            v_THK,
            lambda i, j: PATTERNS[attend](i - j, stride),
        )
        np.testing.assert_allclose(array(out[row, :length]), expected, atol=1e-12)
        alone = attend(*(x[row : row + 1, :length] for x in (q, k, v)), stride)
        np.testing.assert_allclose(array(alone[0]), expected, atol=1e-12)


@pytest.mark.parametrize("attend", PATTERNS)
def test_its_gradients_pass_gradcheck(attend: Attend) -> None:
    q, k, v = inputs(1, 7, 1, 2)
    valid_BT = torch.tensor([[True] * 6 + [False]])
    assert torch.autograd.gradcheck(lambda *x: attend(*x, 2, valid_BT=valid_BT), (q, k, v))


@pytest.mark.parametrize("attend", PATTERNS)
def test_dropout_keeps_the_mean(attend: Attend) -> None:
    torch.manual_seed(0)
    q, k, _ = (x.detach() for x in inputs(1, 400, 4, 3))
    v = torch.ones(1, 400, 4, 3, dtype=torch.float64)
    out = attend(q, k, v, 8, dropout=0.5)
    assert out.std() > 0.05
    torch.testing.assert_close(out.mean(), torch.ones((), dtype=torch.float64), atol=0.03, rtol=0)
