"""Heads whose widths together are not the model's: every mixer that has ``head_dim``."""

from functools import partial

import pytest
import torch

from ossicle.core.errors import ConfigError
from ossicle.layer.multi_head import MultiHead, head_sizes
from ossicle.mixer.alibi_attention import AlibiAttention
from ossicle.mixer.attention import Attention
from ossicle.mixer.base import Mixer
from ossicle.mixer.disentangled_attention import DisentangledAttention
from ossicle.mixer.key_query_attention import KeyQueryAttention
from ossicle.mixer.linear_attention import LinearAttention
from ossicle.mixer.local_attention import LocalAttention
from ossicle.mixer.low_rank_attention import LowRankAttention
from ossicle.mixer.relative_attention import RelativeAttention
from ossicle.mixer.reused_attention import ReusedAttention
from ossicle.mixer.rotary import Rotary
from ossicle.mixer.strided_attention import StridedAttention
from tests.mixer.loops import macs, noisy, num_parameters

DIM, HEADS, WIDTH = 12, 3, 6
INNER = HEADS * WIDTH
EMBEDDABLE = {
    "alibi": partial(AlibiAttention, dropout=0.0),
    "attention": partial(Attention, dropout=0.0),
    "key_query": KeyQueryAttention,
    "linear": LinearAttention,
    "local": partial(LocalAttention, dropout=0.0, window=2),
    "local with global frames": partial(LocalAttention, dropout=0.0, window=2, num_global=2),
    "low_rank": partial(LowRankAttention, dropout=0.0, num_segments=3),
    "reused": partial(ReusedAttention, dropout=0.0),
    "rotary": partial(Rotary, dropout=0.0),
    "strided": partial(StridedAttention, dropout=0.0, stride=3),
    "strided, merged": partial(StridedAttention, dropout=0.0, stride=3, pattern="merged"),
}
"""Mixers that read frames through their maps alone: the rest are held to loops in their own files."""
FOUR_MAPS = set(EMBEDDABLE) - {"low_rank", "local with global frames"}


@pytest.mark.parametrize("name", EMBEDDABLE)
def test_wider_heads_are_those_of_a_wider_model_that_reads_and_says_zeros_beyond(name: str) -> None:
    own: Mixer = noisy(EMBEDDABLE[name](DIM, HEADS, head_dim=WIDTH)).double()
    wide: Mixer = EMBEDDABLE[name](INNER, HEADS).eval().double()
    whole = dict(wide.named_parameters())
    with torch.no_grad():
        for key, parameter in own.named_parameters():
            whole[key].zero_()[tuple(slice(size) for size in parameter.shape)] = parameter
    x_BTD = torch.randn(2, 9, DIM, dtype=torch.float64)
    valid_BT = torch.arange(9) < torch.tensor([[9], [6]])
    out_BTD = own(x_BTD, valid_BT)
    assert out_BTD.shape == x_BTD.shape
    out_BTE = wide(torch.nn.functional.pad(x_BTD, (0, INNER - DIM)), valid_BT)
    torch.testing.assert_close(out_BTD[valid_BT], out_BTE[..., :DIM][valid_BT], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(FOUR_MAPS))
def test_parameters_and_products_are_those_of_maps_between_both_widths(name: str) -> None:
    frames, rows = 24, 2
    with torch.device("meta"):
        own, wide = EMBEDDABLE[name](DIM, HEADS, head_dim=WIDTH), EMBEDDABLE[name](INNER, HEADS)
    # three maps with biases of the inner width, one back with one of the model's
    spared = 4 * (INNER - DIM) * INNER
    assert num_parameters(wide) - num_parameters(own) == spared + INNER - DIM
    made = macs(lambda: EMBEDDABLE[name](DIM, HEADS, head_dim=WIDTH), rows, frames, DIM)
    assert macs(lambda: EMBEDDABLE[name](INNER, HEADS), rows, frames, INNER) - made == rows * frames * spared


def test_parameters_and_products_with_biases_are_those_of_their_formulas() -> None:
    frames, rows, places, eight = 24, 2, 512, 8
    maps = 4 * frames * DIM * INNER + 2 * frames**2 * INNER
    gate = frames * DIM * eight
    assert macs(lambda: RelativeAttention(DIM, HEADS, head_dim=WIDTH), rows, frames, DIM) == rows * (maps + gate)
    disentangled = rows * (maps + 2 * frames * places * INNER) + 2 * places * DIM * INNER
    assert macs(lambda: DisentangledAttention(DIM, HEADS, head_dim=WIDTH), rows, frames, DIM) == disentangled


@pytest.mark.parametrize("name", sorted({*EMBEDDABLE} - {"local with global frames", "strided, merged"}))
def test_without_a_count_heads_are_counted_by_their_width(name: str) -> None:
    mixer = EMBEDDABLE[name](DIM, None, head_dim=4)
    assert isinstance(mixer, MultiHead | ReusedAttention)
    assert mixer.num_heads == DIM // 4


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ((None, None), "are both null"),
        ((None, 5), "head_dim=5 does not divide the width 12"),
        ((3, 0), "head_dim=0 is no width"),
        ((None, 0), "head_dim=0 is no width"),
        ((0, 4), "num_heads=0 is no number of heads"),
        ((5, None), "num_heads=5 does not divide the width 12"),
    ],
)
def test_sizes_that_make_no_heads_are_refused(numbers: tuple[int | None, int | None], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        head_sizes(DIM, *numbers)


def test_a_gate_that_reads_a_heads_share_of_a_frame_asks_heads_to_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="num_heads=5 does not divide the width 12"):
        RelativeAttention(DIM, 5, head_dim=4)
