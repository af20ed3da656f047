import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from scipy.signal import lfilter

from ossicle.ops.summary import decaying_sum, decaying_summary, mean_summary


def by_hand(x_TD: torch.Tensor, decay: float | None, chunk: int | None, left_chunks: int | None = None) -> torch.Tensor:
    """Weighted means of one utterance, a pair of frames at a time."""
    frames = len(x_TD)
    out = torch.zeros_like(x_TD)
    for t in range(frames):
        total = 0.0
        for s in range(frames):
            apart = 0 if chunk is None else t // chunk - s // chunk
            if apart < 0 or (left_chunks is not None and apart > left_chunks):
                continue
            weight = 1.0 if decay is None else decay ** abs(t - s)
            out[t] += weight * x_TD[s]
            total += weight
        out[t] /= total
    return out


LENGTHS = st.lists(st.integers(1, 150), min_size=1, max_size=3)


@pytest.mark.parametrize(("chunk", "left_chunks"), [(None, None), (1, None), (7, None), (7, 0), (7, 2), (64, 5)])
@hypothesis.given(lengths=LENGTHS)
@hypothesis.settings(max_examples=6, deadline=None)
def test_means_equal_a_float64_loop_over_pairs(chunk: int | None, left_chunks: int | None, lengths: list[int]) -> None:
    x_BTD = torch.randn(len(lengths), max(lengths), 2, dtype=torch.float64)
    valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    got = mean_summary(x_BTD, valid_BT, chunk=chunk, left_chunks=left_chunks).expand(x_BTD.shape)
    whole = mean_summary(x_BTD, chunk=chunk, left_chunks=left_chunks).expand(x_BTD.shape)
    for row, length in enumerate(lengths):
        expected = by_hand(x_BTD[row, :length], None, chunk, left_chunks)
        torch.testing.assert_close(got[row, :length], expected, atol=1e-11, rtol=1e-11)
    expected = by_hand(x_BTD[0], None, chunk, left_chunks)
    torch.testing.assert_close(whole[0], expected, atol=1e-11, rtol=1e-11)


def test_a_windows_mean_loses_no_digits_in_a_long_row_and_hears_nothing_beyond_it() -> None:
    x_BTD = 3 + torch.randn(1, 64_000, 2, generator=torch.Generator().manual_seed(0))
    got = mean_summary(x_BTD, chunk=16, left_chunks=1)
    own = x_BTD.double().unflatten(1, (-1, 16)).mean(2)
    expected = ((own + own.roll(1, 1)) / 2)[:, 1:].repeat_interleave(16, 1)
    torch.testing.assert_close(got[:, 16:].double(), expected, atol=3e-6, rtol=0)
    x_BTD[:, 0] = torch.inf
    assert mean_summary(x_BTD, chunk=16, left_chunks=1)[:, 32:].isfinite().all()


@pytest.mark.parametrize("chunk", [None, 1, 7, 70])
@pytest.mark.parametrize("decay", [0.3, 0.995])
@hypothesis.given(lengths=LENGTHS)
@hypothesis.settings(max_examples=5, deadline=None)
def test_fading_means_equal_a_float64_loop_over_pairs(decay: float, chunk: int | None, lengths: list[int]) -> None:
    x_BTD = torch.randn(len(lengths), max(lengths), 2, dtype=torch.float64)
    valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    got = decaying_summary(x_BTD, decay, valid_BT, chunk=chunk)
    assert got.isfinite().all()
    for row, length in enumerate(lengths):
        expected = by_hand(x_BTD[row, :length], decay, chunk)
        torch.testing.assert_close(got[row, :length], expected, atol=1e-11, rtol=1e-11)


@hypothesis.given(frames=st.integers(1, 9000), decay=st.sampled_from([0.01, 0.9, 0.9999]))
@hypothesis.settings(max_examples=12, deadline=None)
def test_a_decaying_sum_is_scipys_recursive_filter(frames: int, decay: float) -> None:
    x_BTD = torch.randn(2, frames, 3, dtype=torch.float64)
    expected = torch.from_numpy(lfilter([1.0], [1.0, -decay], x_BTD.numpy(), axis=1))
    torch.testing.assert_close(decaying_sum(x_BTD, decay), expected, atol=1e-9, rtol=1e-9)


def test_means_are_not_rounded_by_autocast() -> None:
    x_BTD = torch.randn(1, 5000, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = decaying_summary(x_BTD, 0.995)
    torch.testing.assert_close(rounded, decaying_summary(x_BTD, 0.995), atol=0, rtol=0)


def test_gradients_pass_gradcheck() -> None:
    x_BTD = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    valid_BT = torch.arange(5) < torch.tensor([[5], [3]])
    assert torch.autograd.gradcheck(lambda x: decaying_summary(x, 0.7, valid_BT, chunk=2)[valid_BT], (x_BTD,))
    assert torch.autograd.gradcheck(lambda x: mean_summary(x, valid_BT, chunk=2, left_chunks=1)[valid_BT], (x_BTD,))
