import math

import numpy as np
import pytest
import torch
from transformers import FNetConfig
from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform

from ossicle.meter.flops import count_macs
from ossicle.mixer.fourier import Fourier
from tests.mixer.leaks import everything, known
from tests.mixer.loops import array, fourier

DIM = 24


def test_it_is_the_transform_of_transformers_fnet() -> None:
    theirs = FNetBasicFourierTransform(FNetConfig(hidden_size=DIM))
    x_BTD = torch.randn(3, 31, DIM)
    torch.testing.assert_close(Fourier(DIM, ortho=False)(x_BTD), theirs(x_BTD)[0], atol=1e-4, rtol=1e-5)


def test_a_padded_row_is_transformers_transform_of_its_own_frames() -> None:
    theirs = FNetBasicFourierTransform(FNetConfig(hidden_size=DIM))
    x_BTD = torch.randn(3, 31, DIM, dtype=torch.float64)
    lengths = [31, 17, 2]
    out_BTD = Fourier(DIM, ortho=False)(x_BTD, torch.arange(31) < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        expected = theirs(x_BTD[row : row + 1, :length])[0][0]
        torch.testing.assert_close(out_BTD[row, :length], expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("ortho", [False, True])
@pytest.mark.parametrize("dim", [1, 6, 7])
def test_padded_rows_equal_a_float64_loop_over_each_alone(dim: int, ortho: bool) -> None:
    torch.manual_seed(0)
    x_BTD = torch.randn(3, 9, dim, dtype=torch.float64)
    lengths = [9, 4, 1]
    out_BTD = Fourier(dim, ortho=ortho)(x_BTD, torch.arange(9) < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        expected = fourier(array(x_BTD[row, :length])) / (math.sqrt(length * dim) if ortho else 1)
        np.testing.assert_allclose(array(out_BTD[row, :length]), expected, atol=1e-11, rtol=1e-11)
    unpadded = Fourier(dim, ortho=ortho)(x_BTD)
    expected = fourier(array(x_BTD[0])) / (math.sqrt(9 * dim) if ortho else 1)
    np.testing.assert_allclose(array(unpadded[0]), expected, atol=1e-11, rtol=1e-11)


def test_by_default_what_is_random_keeps_half_of_its_energy() -> None:
    torch.manual_seed(0)
    x_BTD = torch.randn(2, 500, 64)
    assert abs(Fourier(64)(x_BTD).square().mean() / x_BTD.square().mean() - 0.5) < 0.02


def test_every_frame_knows_every_real_frame_of_its_row_and_no_other() -> None:
    assert torch.equal(known(Fourier(6), 7, 6, [7, 5]), everything(7, 5))


def test_its_gradients_pass_gradcheck() -> None:
    x_BTD = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Fourier(4), (x_BTD,))


def test_it_has_no_parameters_and_no_products() -> None:
    mixer = Fourier(DIM)
    assert not list(mixer.parameters())
    assert count_macs(lambda: mixer(torch.empty(2, 50, DIM, device="meta"))) == 0
