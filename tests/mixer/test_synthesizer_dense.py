import numpy as np
import pytest
import torch
from torch import nn

from ossicle.core.errors import ConfigError
from ossicle.mixer.synthesizer_dense import SynthesizerDense
from tests.mixer.loops import array, dependence, macs, mapped, noisy, num_parameters, softmax_means

DIM, HEADS, PLACES = 24, 3, 40


def test_it_equals_a_loop_in_float64() -> None:
    mixer = noisy(SynthesizerDense(DIM, HEADS, max_frames=PLACES)).double()
    x_TD = torch.randn(9, DIM, dtype=torch.float64)
    hidden_THK = np.maximum(mapped(mixer.hidden, array(x_TD), HEADS), 0)
    places_HLK = array(mixer.places)
    mixed_THK = softmax_means(
        lambda h, i, j: hidden_THK[i, h] @ places_HLK[h, j], mapped(mixer.value, array(x_TD), HEADS)
    )
    expected = mapped(mixer.out, mixed_THK.reshape(9, DIM))[:, 0]
    np.testing.assert_allclose(array(mixer(x_TD[None]))[0], expected, atol=1e-12)


@pytest.mark.parametrize("frames", [9, 3, 40])
def test_factorised_it_equals_a_loop_in_float64_over_pairs_of_numbers(frames: int) -> None:
    first = 8
    mixer = noisy(SynthesizerDense(DIM, HEADS, max_frames=PLACES, factor=first)).double()
    assert mixer.blocks is not None
    x_TD = torch.randn(frames, DIM, dtype=torch.float64)
    hidden_THK = np.maximum(mapped(mixer.hidden, array(x_TD), HEADS), 0)
    within_HAK, between_HNK = array(mixer.places), array(mixer.blocks)
    pairs = [(j % first, j // first) for j in range(PLACES)]
    assert len(set(pairs)) == PLACES
    assert (within_HAK.shape[1], between_HNK.shape[1]) == (first, PLACES // first)
    mixed_THK = softmax_means(
        lambda h, i, j: (
            hidden_THK[i, h] @ within_HAK[h, pairs[j][0]] * (hidden_THK[i, h] @ between_HNK[h, pairs[j][1]])
        ),
        mapped(mixer.value, array(x_TD), HEADS),
    )
    expected = mapped(mixer.out, mixed_THK.reshape(frames, DIM))[:, 0]
    np.testing.assert_allclose(array(mixer(x_TD[None]))[0], expected, atol=1e-12)


def test_factorised_all_frames_that_it_is_for_are_taken_and_one_more_is_refused() -> None:
    mixer = SynthesizerDense(DIM, HEADS, max_frames=PLACES, factor=8)
    assert mixer(torch.randn(1, PLACES, DIM)).shape == (1, PLACES, DIM)
    with pytest.raises(ConfigError, match="max_frames=40 was given 41 frames"):
        mixer(torch.randn(1, 41, DIM))
    with pytest.raises(ConfigError, match="factor=7 does not divide"):
        SynthesizerDense(DIM, HEADS, max_frames=PLACES, factor=7)


@pytest.mark.parametrize("factor", [None, 8])
def test_every_frame_depends_on_every_frame(factor: int | None) -> None:
    assert dependence(noisy(SynthesizerDense(DIM, HEADS, max_frames=PLACES, factor=factor)), 20, DIM).all()


def test_weights_come_from_the_frame_alone() -> None:
    mixer = noisy(SynthesizerDense(DIM, HEADS, max_frames=PLACES))
    x_BTD = torch.randn(1, 9, DIM)
    # what one frame adds to another depends on its value alone: moved by one step twice, it adds twice as much
    first, second = (mixer(x_BTD + times * torch.eye(9)[4][:, None] * 0.1)[0] - mixer(x_BTD)[0] for times in (1, 2))
    others = torch.arange(9) != 4
    torch.testing.assert_close(2 * first[others], second[others], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factor", [None, 2])
def test_its_gradients_pass_gradcheck(factor: int | None) -> None:
    mixer = noisy(SynthesizerDense(4, num_heads=2, max_frames=4, factor=factor)).double()
    x_BTD = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_the_formula() -> None:
    dim, frames, rows = 768, 100, 2
    with torch.device("meta"):
        mixer: nn.Module = SynthesizerDense(dim)
    assert num_parameters(mixer) == 3 * (dim * dim + dim) + 2000 * dim
    assert macs(lambda: SynthesizerDense(dim), rows, frames, dim) == rows * (3 * frames * dim**2 + 2 * frames**2 * dim)


def test_factorised_its_weights_are_those_of_both_factors_and_scores_are_products_of_a_number_each() -> None:
    dim, frames, rows, first, second = 768, 100, 2, 40, 50
    with torch.device("meta"):
        mixer: nn.Module = SynthesizerDense(dim, factor=first)
    assert num_parameters(mixer) == 3 * (dim * dim + dim) + (first + second) * dim
    # of the second factor those are made that frames have: 3 of 50; the products themselves are elementwise
    products = 3 * frames * dim**2 + frames * (first + 3) * dim + frames**2 * dim
    assert macs(lambda: SynthesizerDense(dim, factor=first), rows, frames, dim) == rows * products


def test_input_longer_than_its_places_is_refused_with_the_mend() -> None:
    with pytest.raises(ConfigError, match="max_frames=40 was given 41 frames") as caught:
        SynthesizerDense(DIM, HEADS, max_frames=PLACES)(torch.randn(1, 41, DIM))
    assert "mixer.max_frames=41" in caught.value.mend
    with pytest.raises(ConfigError, match="max_frames=0"):
        SynthesizerDense(DIM, HEADS, max_frames=0)
