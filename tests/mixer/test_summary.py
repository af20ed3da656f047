from typing import Any

import pytest
import torch
from torch.nn import functional

from ossicle.core.errors import ConfigError
from ossicle.layer.grouped import GroupedLinear
from ossicle.meter.flops import count_macs
from ossicle.mixer.summary import Summary
from tests.mixer.leaks import everything, known, noisy

DIM, HEADS = 8, 2
VARIANTS: list[dict[str, Any]] = [
    {"kind": "mean"},
    {"kind": "mean", "hidden_dim": 12},
    {"kind": "fast"},
    {"kind": "lite"},
    {"kind": "mean", "decay": 0.7},
    {"kind": "fast", "decay": 0.7, "chunk": 3},
    {"kind": "mean", "chunk": 3},
    {"kind": "lite", "chunk": 3, "left_chunks": 1},
    {"kind": "fast", "chunk": 3, "left_chunks": 0},
]


def build(variant: dict[str, Any]) -> Summary:
    mixer = noisy(Summary(DIM, num_heads=HEADS, **variant))
    assert isinstance(mixer, Summary)
    return mixer


def blocks(layer: GroupedLinear, x_D: torch.Tensor) -> torch.Tensor:
    """A block-diagonal map as the dense one that it stands for."""
    return torch.block_diag(*layer.weight).T @ x_D + layer.bias


def network(layers: torch.nn.Module, x_D: torch.Tensor) -> torch.Tensor:
    first, _, second = layers.children()
    assert isinstance(first, GroupedLinear)
    assert isinstance(second, GroupedLinear)
    return blocks(second, functional.gelu(blocks(first, x_D)))


def weight(mixer: Summary, t: int, s: int) -> float:
    """What frame s weighs in the mean of frame t, before division."""
    apart = 0 if mixer.chunk is None else t // mixer.chunk - s // mixer.chunk
    if apart < 0 or (mixer.left_chunks is not None and apart > mixer.left_chunks):
        return 0.0
    return 1.0 if mixer.decay is None else mixer.decay ** abs(t - s)


def by_hand(mixer: Summary, x_TD: torch.Tensor) -> torch.Tensor:
    """The equations on one utterance, frame by frame."""
    out = []
    for t in range(len(x_TD)):
        if mixer.joint is not None:
            halves = [functional.gelu(mixer.joint.weight @ x + mixer.joint.bias) for x in x_TD]
            local, summaries = halves[t][:DIM], [half[DIM:] for half in halves]
        else:
            assert mixer.summary is not None
            summaries = [network(mixer.summary, x) for x in x_TD]
            local = None if mixer.local is None else network(mixer.local, x_TD[t])
        weights = [weight(mixer, t, s) for s in range(len(x_TD))]
        mean = sum(w * s for w, s in zip(weights, summaries, strict=True)) / sum(weights)
        if mixer.combine is not None:
            assert local is not None
            mean = functional.gelu(mixer.combine.weight @ torch.cat([local, mean]) + mixer.combine.bias)
        out.append(mean)
    return torch.stack(out)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_padded_rows_equal_a_float64_loop_over_each_alone(variant: dict[str, Any]) -> None:
    mixer = build(variant)
    x_BTD = torch.randn(3, 11, DIM, dtype=torch.float64)
    lengths = [11, 4, 1]
    out_BTD = mixer(x_BTD, torch.arange(11) < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        expected = by_hand(mixer, x_BTD[row, :length])
        torch.testing.assert_close(out_BTD[row, :length], expected, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_frame_knows_its_window_and_no_other(variant: dict[str, Any]) -> None:
    mixer = build(variant)
    # In float64 gelu is positive or negative, hardly zero: a frame that weighs something has a gradient.
    table = known(mixer, 11, DIM, [11, 10])
    window = torch.tensor([[weight(mixer, t, s) > 0 for s in range(11)] for t in range(11)])
    own = torch.eye(11, dtype=torch.bool)
    assert torch.equal(table, (window | own) & everything(11, 10))


def test_in_chunks_what_is_said_does_not_change_when_more_is_heard() -> None:
    mixer = build({"kind": "mean", "decay": 0.9, "chunk": 4})
    x_BTD = torch.randn(1, 20, DIM, dtype=torch.float64)
    whole_BTD = mixer(x_BTD)
    for heard in (4, 8, 16):
        torch.testing.assert_close(mixer(x_BTD[:, :heard]), whole_BTD[:, :heard], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_its_gradients_pass_gradcheck(variant: dict[str, Any]) -> None:
    mixer = build(variant)
    x_BTD = torch.randn(2, 5, DIM, dtype=torch.float64, requires_grad=True)
    valid_BT = torch.arange(5) < torch.tensor([[5], [2]])
    assert torch.autograd.gradcheck(lambda x: mixer(x, valid_BT)[valid_BT], (x_BTD,))


@pytest.mark.parametrize("kind", ["mean", "fast", "lite"])
@pytest.mark.parametrize("window", [{}, {"chunk": 8}, {"chunk": 8, "left_chunks": 2}], ids=str)
def test_its_parameters_and_products_are_those_of_the_formula(kind: str, window: dict[str, int]) -> None:
    dim, heads, hidden, frames = 24, 3, 36, 50  # sums over chunks have no products
    with torch.device("meta"):
        mixer = Summary(dim, kind=kind, num_heads=heads, hidden_dim=hidden, **window).eval()
        x_BTD = torch.empty(2, frames, dim)
    network_products, network_biases = 2 * dim * hidden // heads, dim + hidden
    products = {
        "mean": 2 * network_products + 2 * dim * dim,
        "fast": 2 * dim * dim + 2 * dim * dim,
        "lite": network_products,
    }[kind]
    biases = {"mean": 2 * network_biases + dim, "fast": 3 * dim, "lite": network_biases}[kind]
    assert sum(p.numel() for p in mixer.parameters()) == products + biases
    assert count_macs(lambda: mixer(x_BTD)) == 2 * frames * products


def test_a_fading_mean_costs_a_block_of_products_a_frame() -> None:
    dim, frames, block = 24, 64 * 64, 64
    with torch.device("meta"):
        plain = Summary(dim, kind="fast").eval()
        fading = Summary(dim, kind="fast", decay=0.995).eval()
        x_BTD = torch.empty(1, frames, dim)
    more = count_macs(lambda: fading(x_BTD)) - count_macs(lambda: plain(x_BTD))
    # Two directions of the frames and their weights, and the sums of blocks after all but the last.
    assert more == 2 * (dim + 1) * (frames * block + (frames // block - 1) ** 2)


@pytest.mark.parametrize("kind", ["mean", "fast"])
def test_a_map_that_stands_in_place_of_the_last_one_has_the_same_gelu_after_it(kind: str) -> None:
    mixer = build({"kind": kind})
    x_BTD = torch.randn(2, 5, DIM, dtype=torch.float64)
    expected = mixer(x_BTD)
    assert mixer.combine is not None
    mixer.combine = torch.nn.Sequential(mixer.combine)  # as one in float8, or with an adapter
    torch.testing.assert_close(mixer(x_BTD), expected)


def test_what_is_combined_is_dropped_only_in_training() -> None:
    mixer = Summary(DIM, num_heads=HEADS, dropout=0.5)
    x_BTD = torch.randn(1, 9, DIM)
    assert not torch.equal(mixer(x_BTD), mixer(x_BTD))
    assert torch.equal(mixer.eval()(x_BTD), mixer(x_BTD))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"kind": "light"}, "kind=light is no summary"),
        ({"num_heads": 5}, "num_heads=5 does not divide the width 24"),
        ({"hidden_dim": 10}, "num_heads=4 does not divide the width 10"),
        ({"decay": 1.0}, "decay=1.0 is no weight"),
        ({"chunk": 0}, "chunk=0 holds no frame"),
        ({"left_chunks": 2}, "left_chunks=2 counts chunks where there are none"),
        ({"left_chunks": 2, "chunk": 4, "decay": 0.9}, "left_chunks=2 counts chunks where there are none"),
    ],
)
def test_what_makes_no_summary_is_refused(numbers: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Summary(24, **numbers)
