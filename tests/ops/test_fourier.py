import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from scipy import fft, signal

from ossicle.ops.fourier import fast_length, fourier_mix, fourier_of_lengths, long_convolution


@hypothesis.given(least=st.integers(1, 200_000))
def test_a_fast_length_is_scipys(least: int) -> None:
    assert fast_length(least) == fft.next_fast_len(least, real=True)


@pytest.mark.parametrize("ortho", [False, True])
@hypothesis.given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), dim=st.integers(1, 9))
@hypothesis.settings(max_examples=20, deadline=None)
def test_each_padded_row_is_numpys_transform_over_its_own_length(ortho: bool, lengths: list[int], dim: int) -> None:
    torch.manual_seed(dim)
    x_BTD = torch.randn(len(lengths), max(lengths), dim, dtype=torch.float64)
    valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    alone_BTD, padded_BTD = fourier_mix(x_BTD, ortho=ortho), fourier_mix(x_BTD, valid_BT, ortho=ortho)
    for row, length in enumerate(lengths):
        norm = "ortho" if ortho else "backward"
        whole = np.fft.fft2(x_BTD[row].numpy(), norm=norm).real
        torch.testing.assert_close(alone_BTD[row], torch.from_numpy(whole), atol=1e-10, rtol=1e-10)
        real = np.fft.fft2(x_BTD[row, :length].numpy(), norm=norm).real
        torch.testing.assert_close(padded_BTD[row, :length], torch.from_numpy(real), atol=1e-10, rtol=1e-10)


def test_a_long_padded_row_keeps_single_precision() -> None:
    lengths = [30_011, 29_999]  # primes: no transform of their own size is fast
    x_BTC = torch.randn(2, max(lengths), 2, dtype=torch.complex64)
    x_BTC[1, lengths[1] :] = 0
    got = fourier_of_lengths(x_BTC, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        expected = torch.fft.fft(x_BTC[row, :length].to(torch.complex128), dim=0)
        error = (got[row, :length] - expected).abs().max() / expected.abs().mean()
        assert error < 2e-5


@pytest.mark.parametrize("causal", [False, True])
@hypothesis.given(frames=st.integers(1, 50), rows=st.integers(1, 3))
@hypothesis.settings(max_examples=20, deadline=None)
def test_a_long_convolution_is_scipys_direct_one(causal: bool, frames: int, rows: int) -> None:
    torch.manual_seed(frames)
    x_BTD = torch.randn(rows, frames, 3, dtype=torch.float64)
    there_TD, back_TD = torch.randn(2, frames, 3, dtype=torch.float64)
    got = long_convolution(x_BTD, there_TD, None if causal else back_TD)
    if causal:
        back_TD = torch.zeros_like(back_TD)
    both = torch.cat([back_TD[1:].flip(0), there_TD]).numpy()
    for b in range(rows):
        for d in range(3):
            full = signal.convolve(x_BTD[b, :, d].numpy(), both[:, d], method="direct")
            expected = torch.from_numpy(full[frames - 1 : 2 * frames - 1])
            torch.testing.assert_close(got[b, :, d], expected, atol=1e-11, rtol=1e-11)


def test_gradients_of_both_pass_gradcheck() -> None:
    x_BTD = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    valid_BT = torch.arange(5) < torch.tensor([[5], [3]])
    filters = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fourier_mix(x, valid_BT)[valid_BT], (x_BTD,))
    assert torch.autograd.gradcheck(lambda x, f: long_convolution(x, f[0], f[1]), (x_BTD, filters))
