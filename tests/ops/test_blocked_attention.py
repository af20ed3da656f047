import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from ossicle.ops import blocked_attention
from ossicle.ops.blocked_attention import attend_blocked, segments
from tests.mixer.loops import array, softmax_means


def inputs(*shape: int) -> list[Tensor]:
    torch.manual_seed(sum(shape))
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks as small as the window, so that a few frames make several."""
    monkeypatch.setattr(blocked_attention, "MIN_BLOCK", 2)


@hypothesis.given(
    segment=st.lists(st.integers(0, 3), min_size=1, max_size=14), window=st.integers(0, 6), whole=st.booleans()
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_it_equals_a_loop_in_float64_within_windows_and_segments(segment: list[int], window: int, whole: bool) -> None:
    frames = len(segment)
    q, k, v = inputs(1, frames, 2, 3)
    q_THK, k_THK, v_THK = (array(x[0]) for x in (q, k, v))
    mine = [1] * frames if whole else segment

    def seen(query: int, key: int) -> bool:
        same = mine[query] == mine[key] and mine[query] > 0
        return query == key or (same and abs(query - key) <= window)

    expected = softmax_means(lambda h, i, j: q_THK[i, h] @ k_THK[j, h] / np.sqrt(3), v_THK, seen)
    out = attend_blocked(q, k, v, window, segment_BT=None if whole else torch.tensor([segment]))
    np.testing.assert_allclose(array(out)[0], expected, atol=1e-12)


@hypothesis.given(
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=3),
    window=st.integers(0, 6),
    num_global=st.integers(1, 16),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_every_frame_sees_the_global_ones_once(lengths: list[int], window: int, num_global: int) -> None:
    q, k, v = inputs(len(lengths), max(lengths), 2, 3)
    valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    out = attend_blocked(q, k, v, window, segment_BT=valid_BT, num_global=num_global)
    assert out.isfinite().all()
    for row, length in enumerate(lengths):
        q_THK, k_THK, v_THK = (array(x[row, :length]) for x in (q, k, v))
        expected = softmax_means(
            lambda h, i, j: q_THK[i, h] @ k_THK[j, h] / np.sqrt(3),  # noqa: B023  called at once
            v_THK,
            lambda i, j: abs(i - j) <= window or j < num_global,
        )
        np.testing.assert_allclose(array(out[row, :length]), expected, atol=1e-12)


def test_its_gradients_pass_gradcheck() -> None:
    q, k, v = inputs(1, 7, 1, 2)
    valid_BT = torch.tensor([[True] * 5 + [False] * 2])
    assert torch.autograd.gradcheck(lambda *x: attend_blocked(*x, 2, segment_BT=valid_BT, num_global=1), (q, k, v))


def test_packed_frames_know_their_utterance() -> None:
    assert segments(torch.tensor([0, 3, 3, 5], dtype=torch.int32), 6).tolist() == [[1, 1, 1, 3, 3, 4]]
