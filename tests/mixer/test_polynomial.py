import pytest
import torch
from torch.nn import functional

from ossicle.core.errors import ConfigError
from ossicle.meter.flops import count_macs
from ossicle.mixer.polynomial import Polynomial
from tests.mixer.leaks import everything, known, noisy

DIM = 4


def build(degree: int, expand: int) -> Polynomial:
    mixer = noisy(Polynomial(DIM, degree, expand))
    assert isinstance(mixer, Polynomial)
    return mixer


def by_hand(mixer: Polynomial, x_TD: torch.Tensor, degree: int) -> torch.Tensor:
    """The equations on one utterance, frame by frame and degree by degree."""
    width = mixer.out.in_features // degree
    state = torch.zeros(degree, width, dtype=torch.float64)
    for x_D in x_TD:
        power = torch.ones(width, dtype=torch.float64)
        for m in range(degree):
            rows = slice(m * width, (m + 1) * width)
            power = power * functional.gelu(mixer.factors.weight[rows] @ x_D + mixer.factors.bias[rows])
            state[m] += power / len(x_TD)
    shares = [torch.sigmoid(mixer.select.weight @ x_D + mixer.select.bias) * state.flatten() for x_D in x_TD]
    return torch.stack([mixer.out.weight @ share + mixer.out.bias for share in shares])


@pytest.mark.parametrize(("degree", "expand"), [(1, 1), (2, 2), (4, 1)])
def test_padded_rows_equal_a_float64_loop_over_each_alone(degree: int, expand: int) -> None:
    mixer = build(degree, expand)
    x_BTD = torch.randn(3, 9, DIM, dtype=torch.float64)
    lengths = [9, 4, 1]
    out_BTD = mixer(x_BTD, torch.arange(9) < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        expected = by_hand(mixer, x_BTD[row, :length], degree)
        torch.testing.assert_close(out_BTD[row, :length], expected, atol=1e-12, rtol=1e-12)


def test_every_frame_knows_every_real_frame_of_its_row_and_no_other() -> None:
    assert torch.equal(known(build(2, 2), 7, DIM, [7, 5]), everything(7, 5))


def test_the_order_of_other_frames_changes_nothing() -> None:
    mixer = build(3, 2)
    x_BTD = torch.randn(1, 9, DIM, dtype=torch.float64)
    order = torch.randperm(9)
    torch.testing.assert_close(mixer(x_BTD[:, order]), mixer(x_BTD)[:, order], atol=1e-12, rtol=1e-12)


def test_its_gradients_pass_gradcheck() -> None:
    mixer = build(3, 1)
    x_BTD = torch.randn(2, 4, DIM, dtype=torch.float64, requires_grad=True)
    valid_BT = torch.arange(4) < torch.tensor([[4], [2]])
    assert torch.autograd.gradcheck(lambda x: mixer(x, valid_BT)[valid_BT], (x_BTD,))


def test_its_parameters_and_products_are_those_of_the_formula() -> None:
    dim, degree, expand, frames = 24, 3, 2, 50
    with torch.device("meta"):
        mixer = Polynomial(dim, degree, expand).eval()
        x_BTD = torch.empty(2, frames, dim)
    products = 3 * degree * expand * dim * dim
    assert sum(p.numel() for p in mixer.parameters()) == products + 2 * degree * expand * dim + dim
    assert count_macs(lambda: mixer(x_BTD)) == 2 * frames * products


def test_no_degree_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"degree=0 with mixer\.expand=2 is no polynomial"):
        Polynomial(DIM, degree=0)
