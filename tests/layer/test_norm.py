"""Layer norm under autocast, held to its equation in float64."""

import pytest
import torch
from torch import nn

from ossicle.encoder.block import PostNormBlock, PreNormBlock, TransformerBlock
from ossicle.layer.norm import LayerNorm
from ossicle.mixer.attention import Attention


def by_hand(x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return scaled * norm.weight.double() + norm.bias.double()


def test_outside_autocast_it_is_float32_and_equals_its_equation() -> None:
    norm = LayerNorm(24)
    nn.init.normal_(norm.weight)
    x = 100 + torch.randn(3, 7, 24)
    out = norm(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), by_hand(x, norm), atol=1e-4, rtol=1e-5)


def test_under_autocast_only_what_comes_out_is_rounded() -> None:
    norm = LayerNorm(24)
    nn.init.normal_(norm.weight)
    x = 100 + torch.randn(3, 7, 24)  # bfloat16 has steps of 0.5 at 100: a rounded mean or input would be far off
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), by_hand(x, norm), atol=1e-4, rtol=2**-8)


def test_it_has_the_keys_of_torchs_own() -> None:
    assert list(LayerNorm(4).state_dict()) == list(nn.LayerNorm(4).state_dict())


@pytest.mark.parametrize(("kind", "dtype"), [(PostNormBlock, torch.bfloat16), (PreNormBlock, torch.float32)])
def test_a_stack_hands_on_rounded_norms_but_float32_sums(kind: type[TransformerBlock], dtype: torch.dtype) -> None:
    block = kind(Attention(32, 2, dropout=0.0), 32, 64, dropout=0.0, activation_dropout=0.0)
    x = torch.randn(2, 9, 32)
    wanted = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), wanted, atol=0.03, rtol=0.03)
