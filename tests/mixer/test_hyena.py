import math

import pytest
import torch

from ossicle.core.errors import ConfigError
from ossicle.meter.flops import count_macs
from ossicle.mixer.hyena import Hyena
from tests.mixer.leaks import noisy

DIM, BANDS, REACH = 4, 3, 10


def build(order: int = 2, short_kernel: int = 3) -> Hyena:
    mixer = noisy(Hyena(DIM, order=order, short_kernel=short_kernel, filter_dim=5, bands=BANDS, reach=REACH))
    assert isinstance(mixer, Hyena)
    return mixer


def filters_by_hand(mixer: Hyena, distance: int) -> torch.Tensor:
    """All filters at one distance, by the equations."""
    part = mixer.filter
    angles = [2 * math.pi * k * distance / REACH for k in range(1, BANDS + 1)]
    x = [distance / REACH, *map(math.cos, angles), *map(math.sin, angles)]
    hidden = torch.tensor(x, dtype=torch.float64)
    for layer in (part.first, part.second, part.third):
        hidden = torch.sin(part.frequency * (layer.weight @ hidden + layer.bias))
    channels = len(part.out.weight)
    reaches = torch.linspace(0.3 * REACH, 1.5 * REACH, channels).double()
    rates = math.log(100) / reaches
    return (torch.exp(-rates * distance) + part.floor) * torch.sqrt(2 * rates) * (part.out.weight @ hidden)


def by_hand(mixer: Hyena, x_TD: torch.Tensor) -> torch.Tensor:
    """The operator on one utterance, a pair of frames at a time."""
    frames = len(x_TD)
    projected = x_TD @ mixer.project.weight.T + mixer.project.bias
    kernel, reach = mixer.short.weight[:, 0], mixer.short.kernel_size[0] // 2
    short = torch.zeros_like(projected)
    for t in range(frames):
        taps = range(max(0, t - reach), min(frames, t + reach + 1))
        short[t] = mixer.short.bias + sum(kernel[:, s - t + reach] * projected[s] for s in taps)
    state, *gates = short.chunk(mixer.order + 1, -1)
    for n, gate in enumerate(gates):
        convolved = torch.zeros_like(state)
        for t in range(frames):
            for s in range(frames):
                there, back = filters_by_hand(mixer, abs(t - s)).view(mixer.order, 2, DIM)[n]
                convolved[t] += (there if s <= t else back) * state[s]
        state = gate * (convolved + mixer.skip[n] * state)
    return state @ mixer.out.weight.T + mixer.out.bias


@pytest.mark.parametrize(("order", "short_kernel"), [(1, 1), (2, 3), (3, 5)])
def test_padded_rows_equal_a_float64_loop_over_each_alone(order: int, short_kernel: int) -> None:
    mixer = build(order, short_kernel)
    x_BTD = torch.randn(3, 13, DIM, dtype=torch.float64)
    lengths = [13, 4, 1]
    out_BTD = mixer(x_BTD, torch.arange(13) < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        expected = by_hand(mixer, x_BTD[row, :length])
        # The windows' rates are kept in single precision.
        torch.testing.assert_close(out_BTD[row, :length], expected, atol=1e-6, rtol=1e-6)


def test_every_frame_knows_every_real_frame_of_its_row_and_no_other() -> None:
    mixer = build()
    x_BTD = torch.randn(2, 7, DIM, dtype=torch.float64, requires_grad=True)
    out_BTD = mixer(x_BTD, torch.arange(7) < torch.tensor([[7], [5]]))
    for t in range(5):
        (grad_BTD,) = torch.autograd.grad(out_BTD[1, t].square().sum(), x_BTD, retain_graph=True)
        # A transform leaves rounding errors where nothing should be.
        assert (grad_BTD[1, :5].abs().sum(-1) > 1e-6).all()
        assert grad_BTD[1, 5:].abs().sum() == 0
        assert grad_BTD[0].abs().sum() == 0


def test_its_gradients_pass_gradcheck() -> None:
    mixer = build()
    x_BTD = torch.randn(2, 5, DIM, dtype=torch.float64, requires_grad=True)
    valid_BT = torch.arange(5) < torch.tensor([[5], [2]])
    assert torch.autograd.gradcheck(lambda x: mixer(x, valid_BT)[valid_BT], (x_BTD,))


def test_its_parameters_and_products_are_those_of_the_formula() -> None:
    dim, order, kernel, width, bands, frames = 24, 2, 3, 16, 4, 50
    with torch.device("meta"):
        mixer = Hyena(dim, order=order, short_kernel=kernel, filter_dim=width, bands=bands).eval()
        x_BTD = torch.empty(3, frames, dim)
    maps = (order + 1) * dim * dim + (order + 1) * dim * kernel + dim * dim
    network = (1 + 2 * bands) * width + 2 * width * width + width * 2 * order * dim
    # Biases of the maps and of the short convolution, of the network and its sines' frequencies, and the skips.
    rest = 2 * (order + 1) * dim + dim + 4 * width + order * dim
    assert sum(p.numel() for p in mixer.parameters()) == maps + network + rest
    # The filters are made once for all rows.
    assert count_macs(lambda: mixer(x_BTD)) == 3 * frames * maps + frames * network


def test_filters_keep_the_scale_of_what_they_filter() -> None:
    torch.manual_seed(0)
    mixer = Hyena(64)
    filters_TC = mixer.filter(4000)
    with torch.no_grad():
        mixer.filter.out.weight.normal_()
        energy = mixer.filter(4000).square().sum(0).mean() / 64
    assert filters_TC.shape == (4000, 4 * 64)
    assert 0.1 < energy < 2


def test_neither_no_order_nor_a_kernel_without_a_centre_is_taken() -> None:
    with pytest.raises(ConfigError, match="order=0 convolves nothing"):
        Hyena(DIM, order=0)
    with pytest.raises(ConfigError, match="short_kernel=2 has no centre"):
        Hyena(DIM, short_kernel=2)


def test_what_no_filter_has_learned_yet_begins_where_the_equations_have_it() -> None:
    mixer = Hyena(DIM)
    assert (mixer.skip == 1).all()
    assert (mixer.filter.frequency == 10).all()
    assert mixer.filter.floor == 0.01


def test_angles_of_late_frames_are_as_exact_as_those_of_early_ones() -> None:
    torch.manual_seed(0)
    part, frames = Hyena(DIM, reach=REACH).filter, 300_000
    with torch.no_grad():
        part.first.weight[:, 0] = 0  # the distance itself has fewer digits the farther it is
    filters_TC = part(frames)
    early, late = filters_TC[100 * REACH : 101 * REACH], filters_TC[frames - REACH :]  # windows are at their floor
    torch.testing.assert_close(late, early, atol=1e-6, rtol=1e-5)
