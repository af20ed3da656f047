import pytest
import torch

from ossicle.core.errors import ConfigError
from ossicle.meter.flops import count_macs
from ossicle.mixer.convolution import KINDS, Convolution
from tests.mixer.leaks import known, noisy
from tests.mixer.loops import check_padded_rows, convolution

DIM, HEADS, KERNEL = 6, 3, 5


def build(kind: str) -> Convolution:
    mixer = noisy(Convolution(DIM, kind, KERNEL, HEADS))
    assert isinstance(mixer, Convolution)
    return mixer


@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_equal_a_float64_loop_over_each_alone(kind: str) -> None:
    mixer = build(kind)
    check_padded_rows(mixer, DIM, lambda x_TD: convolution(mixer, x_TD))


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_knows_its_neighbours_and_no_other(kind: str) -> None:
    table = known(build(kind), 12, DIM, [12, 10])
    places = torch.arange(12)
    near = (places[:, None] - places).abs() <= KERNEL // 2
    real = (places < 10)[:, None] & (places < 10)
    assert torch.equal(table, near & real)


@pytest.mark.parametrize("kind", KINDS)
def test_its_gradients_pass_gradcheck(kind: str) -> None:
    mixer = noisy(Convolution(4, kind, 3, 2))
    x_BTD = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    valid_BT = torch.arange(4) < torch.tensor([[4], [2]])
    assert torch.autograd.gradcheck(lambda x: mixer(x, valid_BT)[valid_BT], (x_BTD,))


@pytest.mark.parametrize("kind", KINDS)
def test_its_parameters_and_products_are_those_of_the_formula(kind: str) -> None:
    dim, heads, kernel, frames = 24, 3, 7, 50
    with torch.device("meta"):
        mixer = Convolution(dim, kind, kernel, heads).eval()
        x_BTD = torch.empty(2, frames, dim)
    kernels = {"light": heads * kernel, "dynamic": dim * heads * kernel, "depthwise": dim * kernel}[kind]
    assert sum(p.numel() for p in mixer.parameters()) == 3 * dim * dim + 3 * dim + kernels
    # The taps of dynamic kernels are elementwise work, which is not counted.
    taps = kernels if kind == "dynamic" else dim * kernel
    assert count_macs(lambda: mixer(x_BTD)) == 2 * frames * (3 * dim * dim + taps)


def test_taps_are_left_out_only_in_training() -> None:
    mixer = Convolution(DIM, "light", KERNEL, HEADS, dropout=0.5)
    x_BTD = torch.randn(1, 9, DIM)
    assert not torch.equal(mixer(x_BTD), mixer(x_BTD))
    assert torch.equal(mixer.eval()(x_BTD), mixer(x_BTD))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"kind": "lite"}, "kind=lite is no convolution"),
        ({"kernel": 4}, "kernel=4 has no centre"),
        ({"num_heads": 5}, "num_heads=5 does not divide the width 24"),
    ],
)
def test_what_makes_no_convolution_is_refused(numbers: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Convolution(24, **numbers)


@pytest.mark.parametrize("kind", ["light", "depthwise"])
def test_kernels_begin_with_one_energy_however_long_they_are(kind: str) -> None:
    torch.manual_seed(0)
    for kernel in (5, 31):
        weight = Convolution(512, kind=kind, kernel=kernel, num_heads=512).weight
        assert weight is not None
        assert weight.square().sum(1).mean().item() == pytest.approx(1 / 3, rel=0.1)
