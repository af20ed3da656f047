import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ossicle.core.errors import ConfigError
from ossicle.ops.grouped_convolution import block_of, grouped_convolution


def by_torch(x_BTD: torch.Tensor, weight_OIK: torch.Tensor, groups: int) -> torch.Tensor:
    padding = weight_OIK.shape[2] // 2
    out_BOT = functional.conv1d(x_BTD.transpose(1, 2), weight_OIK, padding=padding, groups=groups)
    return out_BOT.transpose(1, 2)[:, : x_BTD.shape[1]]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 3), frames=st.integers(1, 40), groups=st.integers(1, 3), inner=st.integers(1, 4),
    outer=st.integers(1, 4), taps=st.integers(1, 17), block=st.sampled_from([None, 1, 2, 5, 8, 32]),
)  # fmt: skip
def test_outputs_and_gradients_are_those_of_conv1d_in_float64(  # noqa: PLR0917  one a size
    rows: int, frames: int, groups: int, inner: int, outer: int, taps: int, block: int | None
) -> None:
    x_BTD = torch.randn(rows, frames, groups * inner, dtype=torch.float64, requires_grad=True)
    weight_OIK = torch.randn(groups * outer, inner, taps, dtype=torch.float64, requires_grad=True)
    out, wanted = grouped_convolution(x_BTD, weight_OIK, groups, block), by_torch(x_BTD, weight_OIK, groups)
    torch.testing.assert_close(out, wanted, atol=1e-12, rtol=1e-12)
    grad = torch.randn_like(wanted)
    found = torch.autograd.grad(out, (x_BTD, weight_OIK), grad)
    torch.testing.assert_close(found, torch.autograd.grad(wanted, (x_BTD, weight_OIK), grad), atol=1e-12, rtol=1e-12)


def test_wav2vec2s_positions_in_bfloat16_are_as_near_to_float64_as_conv1ds() -> None:
    x_BTD = torch.randn(2, 100, 96)
    weight_OIK = torch.randn(96, 48, 128) / 80
    exact = by_torch(x_BTD.double(), weight_OIK.double(), 2)
    with torch.autocast("cpu", torch.bfloat16):
        ours, torchs = grouped_convolution(x_BTD, weight_OIK, 2), by_torch(x_BTD, weight_OIK, 2)
    assert ours.dtype == torch.bfloat16
    error, torchs_error = ((out.double() - exact).square().mean().sqrt() for out in (ours, torchs))
    assert error < 1.1 * torchs_error < 0.01


def test_the_block_is_what_copies_least() -> None:
    def copied(frames: int, channels: int, block: int) -> float:
        return (block + 127) * (frames / block + channels * block)

    assert block_of(2 * 399, 48) == 4
    assert block_of(64 * 780, 48) == 32
    for frames, channels in ((798, 48), (49_920, 48), (784, 12), (3, 48)):
        chosen = copied(frames, channels, block_of(frames, channels))
        assert chosen < 1.13 * min(copied(frames, channels, block) for block in (1, 2, 4, 8, 16, 32, 64))


def test_on_a_cpu_a_block_has_no_more_than_eight_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = 16 * 99
    assert block_of(frames, 12) == 16
    wide: list[tuple[int, ...]] = []
    product = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda x, y: (wide.append(tuple(x.shape)), product(x, y))[1])
    grouped_convolution(torch.zeros(16, 99, 192), torch.zeros(192, 12, 31), 16)
    assert wide == [(16, 16 * 13, (8 + 30) * 12)], "99 frames are 13 blocks of 8"


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 groups of 4 do not make 8 channels"):
        grouped_convolution(torch.zeros(1, 5, 8), torch.zeros(8, 4, 3), 3)
