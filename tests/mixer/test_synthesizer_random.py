import numpy as np
import pytest
import torch
from torch import nn

from ossicle.core.errors import ConfigError
from ossicle.mixer.synthesizer_random import SynthesizerRandom
from tests.mixer.loops import array, dependence, macs, mapped, noisy, num_parameters, softmax_means

DIM, HEADS, RANK, PLACES = 24, 3, 5, 40


def test_it_equals_a_loop_in_float64() -> None:
    mixer = noisy(SynthesizerRandom(DIM, HEADS, rank=RANK, max_frames=PLACES)).double()
    x_TD = torch.randn(9, DIM, dtype=torch.float64)
    scores_HLL = array(mixer.from_places) @ array(mixer.to_places).transpose(0, 2, 1)
    mixed_THK = softmax_means(lambda h, i, j: scores_HLL[h, i, j], mapped(mixer.value, array(x_TD), HEADS))
    expected = mapped(mixer.out, mixed_THK.reshape(9, DIM))[:, 0]
    np.testing.assert_allclose(array(mixer(x_TD[None]))[0], expected, atol=1e-12)


def test_no_input_changes_its_weights() -> None:
    mixer = noisy(SynthesizerRandom(DIM, HEADS, rank=RANK, max_frames=PLACES)).double()
    x_BTD, y_BTD = torch.randn(2, 1, 9, DIM, dtype=torch.float64).unbind()
    zero_BTD = torch.zeros_like(x_BTD)
    torch.testing.assert_close(mixer(x_BTD + y_BTD) + mixer(zero_BTD), mixer(x_BTD) + mixer(y_BTD))


def test_every_frame_depends_on_every_frame() -> None:
    assert dependence(noisy(SynthesizerRandom(DIM, HEADS, rank=RANK, max_frames=PLACES)), 20, DIM).all()


def test_its_gradients_pass_gradcheck() -> None:
    mixer = noisy(SynthesizerRandom(4, num_heads=2, rank=1, max_frames=3)).double()
    x_BTD = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_the_formula() -> None:
    dim, heads, frames, rows = 768, 12, 100, 2
    with torch.device("meta"):
        mixer: nn.Module = SynthesizerRandom(dim)
    assert num_parameters(mixer) == 2 * (dim * dim + dim) + 2 * heads * 2000 * 8
    # factors are padded to the width of a head, so that their product costs what one of queries and keys does
    expected = rows * (2 * frames * dim**2 + 2 * frames**2 * dim)
    assert macs(lambda: SynthesizerRandom(dim), rows, frames, dim) == expected


def test_ranks_that_do_not_fit_and_input_longer_than_its_places_are_refused() -> None:
    for rank in (0, 9):
        with pytest.raises(ConfigError, match="does not fit heads of width 8"):
            SynthesizerRandom(DIM, HEADS, rank=rank)
    with pytest.raises(ConfigError, match="max_frames=40 was given 41 frames"):
        SynthesizerRandom(DIM, HEADS, max_frames=PLACES)(torch.randn(1, 41, DIM))


def test_one_factor_begins_loud_and_the_other_faint() -> None:
    torch.manual_seed(0)
    mixer = SynthesizerRandom(DIM, HEADS, max_frames=1000)
    assert mixer.from_places.std().item() == pytest.approx(1, rel=0.05)
    assert mixer.to_places.std().item() == pytest.approx(0.02, rel=0.05)
