from functools import partial

import pytest
import torch

from ossicle.core.errors import ConfigError
from ossicle.encoder.elastic import Elastic, Subnet
from ossicle.encoder.transformer import Transformer
from ossicle.mixer.attention import Attention
from ossicle.mixer.pattern import Pattern


def small() -> Elastic:
    torch.manual_seed(0)
    return Elastic(
        partial(Attention, num_heads=4, dropout=0.0), dims=(16, 24, 32), heads=(2, 3, 4), ffn_ratios=(1.5, 2.0),
        depths=(1, 2, 3), position_kernel=8, position_groups=4, dropout=0.0,
    ).eval()  # fmt: skip


def cut_out(encoder: Elastic, dim: int, heads: int, ffn_dim: int, depth: int) -> Transformer:
    """A plain Transformer with the corners of the supernet's weights."""
    plain = Transformer(
        partial(Attention, num_heads=heads, dropout=0.0), dim=dim, num_layers=depth, ffn_dim=ffn_dim, dropout=0.0,
        layer_drop=0.0, position_kernel=8, position_groups=dim // 8,
    ).eval()  # fmt: skip
    weight, bias = encoder.position.conv.weight[:dim], encoder.position.conv.bias[:dim]
    plain.position.conv.parametrizations.weight.original0.data = weight.norm(dim=(0, 1), keepdim=True)
    plain.position.conv.parametrizations.weight.original1.data = weight.clone()
    plain.position.conv.bias.data = bias.clone()
    plain.norm.weight.data, plain.norm.bias.data = encoder.norm.weight[:dim], encoder.norm.bias[:dim]
    for ours, theirs in zip(plain.blocks, encoder.blocks, strict=False):
        pairs = [(getattr(ours.mixer, n), getattr(theirs.mixer, n)) for n in ("query", "key", "value", "out")]
        pairs += [(ours.feed_forward.expand, theirs.expand), (ours.feed_forward.contract, theirs.contract)]
        pairs += [(ours.mixer_norm, theirs.mixer_norm), (ours.feed_forward_norm, theirs.feed_forward_norm)]
        for mine, whole in pairs:
            mine.weight.data = whole.weight[tuple(slice(size) for size in mine.weight.shape)].clone()
            mine.bias.data = whole.bias[: len(mine.bias)].clone()
    return plain


@pytest.mark.parametrize(("dim", "heads", "ffn_dim", "depth"), [(16, 2, 24, 2), (24, 3, 48, 1), (32, 4, 64, 3)])
def test_a_subnet_equals_the_transformer_cut_out_of_it(dim: int, heads: int, ffn_dim: int, depth: int) -> None:
    encoder = small()
    encoder.choose(Subnet(dim, (heads,) * depth, (ffn_dim,) * depth))
    x_BTD = torch.randn(2, 11, 32)
    out_BTD = encoder(x_BTD).last_BTD
    expected = cut_out(encoder, dim, heads, ffn_dim, depth)(x_BTD[..., :dim]).last_BTD
    torch.testing.assert_close(out_BTD[..., :dim], expected)
    assert (out_BTD[..., dim:] == 0).all()


def test_training_draws_every_choice_and_the_same_ones_from_the_same_seed() -> None:
    encoder = small()
    torch.manual_seed(3)
    drawn = [encoder.draw() for _ in range(200)]
    torch.manual_seed(3)
    assert [encoder.draw() for _ in range(200)] == drawn
    assert {subnet.dim for subnet in drawn} == {16, 24, 32}
    assert {len(subnet.num_heads) for subnet in drawn} == {1, 2, 3}
    assert {heads for subnet in drawn for heads in subnet.num_heads} == {2, 3, 4}
    assert {width / subnet.dim for subnet in drawn for width in subnet.ffn_dims} == {1.5, 2.0}


def test_a_narrow_subnet_trains_its_corner_alone() -> None:
    encoder = small()
    encoder.choose(Subnet(16, (2,), (24,)))
    encoder(torch.randn(2, 9, 32)).last_BTD.square().sum().backward()
    grad = encoder.blocks[0].expand.weight.grad
    assert (grad[:24, :16] != 0).any()
    assert (grad[24:] == 0).all()
    assert (grad[:, 16:] == 0).all()
    assert encoder.blocks[1].expand.weight.grad is None


def test_what_is_no_part_of_the_whole_is_refused() -> None:
    with pytest.raises(ConfigError, match="no part of"):
        small().choose(Subnet(40, (2,), (24,)))
    with pytest.raises(ConfigError, match="slices attention with 4 heads"):
        Elastic(Pattern([partial(Attention, num_heads=2)]), dims=(32,), heads=(4,), position_groups=4)


def test_groups_that_do_not_fit_are_refused_with_those_that_do() -> None:
    mixer = partial(Attention, num_heads=12)
    with torch.device("meta"):
        with pytest.raises(ConfigError, match="no multiples of 48") as caught:
            Elastic(mixer, position_groups=16)
        groups = int(caught.value.mend.rpartition("=")[2])
        Elastic(mixer, position_groups=groups)
