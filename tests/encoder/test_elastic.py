from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ossicle.core.errors import ConfigError
from ossicle.encoder.elastic import Elastic, Subnet
from ossicle.encoder.transformer import Transformer
from ossicle.meter.flops import count_macs
from ossicle.mixer.attention import Attention
from ossicle.mixer.pattern import Pattern
from ossicle.ops.attention_backends import BACKENDS
from ossicle.ops.packing import Packing

UNLIKE = Subnet(24, (4, 2, 3), (48, 16, 36))
"""A subnet whose blocks differ in heads and width."""
SUBNETS = pytest.mark.parametrize("subnet", [UNLIKE, Subnet(16, (3, 2), (24, 32)), Subnet(32, (2,), (64,))], ids=str)
HEAD_DIM = 8


def small(head_dim: int | None = None) -> Elastic:
    torch.manual_seed(0)
    return Elastic(
        partial(Attention, num_heads=4, dropout=0.0, head_dim=head_dim),
        dims=(16, 24, 32), heads=(2, 3, 4), ffn_ratios=(1.5, 2.0), depths=(1, 2, 3),
        position_kernel=8, position_groups=4, dropout=0.0,
    ).eval()  # fmt: skip


def cut_out(encoder: Elastic, dim: int, heads: int, ffn_dim: int, depth: int) -> Transformer:
    """A plain Transformer with the corners of the supernet's weights."""
    mixer = partial(Attention, num_heads=heads, dropout=0.0, head_dim=encoder.blocks[0].mixer.head_dim)
    plain = Transformer(
        mixer, dim=dim, num_layers=depth, ffn_dim=ffn_dim, dropout=0.0,
        layer_drop=0.0, position_kernel=8, position_groups=dim // 8,
    ).eval()  # fmt: skip
    weight, bias = encoder.position.conv.weight[:dim], encoder.position.conv.bias[:dim]
    plain.position.conv.parametrizations.weight.original0.data = weight.norm(dim=(0, 1), keepdim=True)
    plain.position.conv.parametrizations.weight.original1.data = weight.clone()
    plain.position.conv.bias.data = bias.clone()
    plain.norm.weight.data, plain.norm.bias.data = encoder.norm.weight[:dim], encoder.norm.bias[:dim]
    for ours, theirs in zip(plain.blocks, encoder.blocks, strict=False):
        pairs = [(getattr(ours.mixer, n), getattr(theirs.mixer, n)) for n in ("query", "key", "value", "out")]
        pairs += [(getattr(ours.feed_forward, n), getattr(theirs.feed_forward, n)) for n in ("expand", "contract")]
        pairs += [(ours.mixer_norm, theirs.mixer_norm), (ours.feed_forward_norm, theirs.feed_forward_norm)]
        for mine, whole in pairs:
            mine.weight.data = whole.weight[tuple(slice(size) for size in mine.weight.shape)].clone()
            mine.bias.data = whole.bias[: len(mine.bias)].clone()
    return plain


def by_hand(encoder: Elastic, subnet: Subnet, x_TD: Tensor, kept: list[int] | None = None) -> Tensor:
    """A subnet on one utterance, by the first rows and columns of every weight; blocks see the kept frames alone."""
    dim, frames = subnet.dim, len(x_TD)

    def mapped(linear: nn.Linear, x: Tensor, out: int) -> Tensor:
        return x @ linear.weight[:out, : x.shape[1]].T + linear.bias[:out]

    def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        deviation = (x.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
        return (x - x.mean(1, keepdim=True)) / deviation * norm.weight[:dim] + norm.bias[:dim]

    conv = encoder.position.conv
    weight, groups = conv.weight[:dim], dim // conv.weight.shape[1]
    placed_DT = functional.conv1d(x_TD[:, :dim].T, weight, conv.bias[:dim], padding=4, groups=groups)[:, :frames]
    x = x_TD[:, :dim] + functional.gelu(placed_DT).T
    x = normed(encoder.norm, x if kept is None else x[kept])
    for block, heads, ffn_dim in zip(encoder.blocks, subnet.num_heads, subnet.ffn_dims, strict=False):
        q, k, v = (
            mapped(linear, x, heads * HEAD_DIM).split(HEAD_DIM, 1)
            for linear in (block.mixer.query, block.mixer.key, block.mixer.value)
        )
        mixed = [(q[h] @ k[h].T / HEAD_DIM**0.5).softmax(1) @ v[h] for h in range(heads)]
        x = normed(block.mixer_norm, x + mapped(block.mixer.out, torch.cat(mixed, 1), dim))
        inside = functional.gelu(mapped(block.feed_forward.expand, x, ffn_dim))
        x = normed(block.feed_forward_norm, x + mapped(block.feed_forward.contract, inside, dim))
    return x


@SUBNETS
def test_padded_and_packed_rows_equal_the_papers_sums_over_each_alone_in_float64(subnet: Subnet) -> None:
    encoder = small().double()
    encoder.choose(subnet)
    lengths = [13, 5, 9]
    x_BTD = torch.randn(3, 13, 32, dtype=torch.float64)
    valid_BT = torch.arange(13) < torch.tensor(lengths)[:, None]
    dirty_BTD = x_BTD.masked_fill(~valid_BT[..., None], 1e3)
    padded_BTD = encoder(dirty_BTD, valid_BT).last_BTD
    packed = encoder.packed(x_BTD[valid_BT], Packing.of(lengths)).last_PD.split(lengths)
    for row, length in enumerate(lengths):
        expected = by_hand(encoder, subnet, x_BTD[row, :length])
        for got_TD in (padded_BTD[row, :length], packed[row], encoder(x_BTD[row : row + 1, :length]).last_BTD[0]):
            torch.testing.assert_close(got_TD[:, : subnet.dim], expected)
            assert (got_TD[:, subnet.dim :] == 0).all()


@SUBNETS
def test_of_frames_that_are_left_out_no_block_hears(subnet: Subnet) -> None:
    encoder = small().double()
    encoder.choose(subnet)
    x_BTD = torch.randn(2, 13, 32, dtype=torch.float64)
    kept = [[0, 3, 4, 11], [2, 5, 6, 12]]
    out_BMD = encoder(x_BTD, kept_BM=torch.tensor(kept)).last_BTD
    for row, places in enumerate(kept):
        torch.testing.assert_close(out_BMD[row, :, : subnet.dim], by_hand(encoder, subnet, x_BTD[row], places))


def test_every_draw_trains_in_bfloat16_and_runs_on_the_meta_device() -> None:
    encoder = small().train()
    with torch.device("meta"):
        twin = small().train()
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        seen.add(encoder.draw())
        torch.manual_seed(seed)
        encoder.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out_BTD = encoder(torch.randn(2, 9, 32)).last_BTD
        assert out_BTD.isfinite().all()
        out_BTD.float().square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
        assert twin(torch.empty(2, 9, 32, device="meta")).last_BTD.shape == (2, 9, 32)
    assert len(seen) > 6


def elastic_block(**attention: object) -> nn.Module:
    """The one block of a supernet that drops nothing outside of its attention."""
    mixer = partial(Attention, num_heads=2, **attention)
    sizes = {"dims": (16,), "heads": (2,), "ffn_ratios": (2.0,), "depths": (1,), "position_groups": 4}
    return Elastic(mixer, dropout=0.0, **sizes).blocks[0]


def test_the_weights_of_its_attention_are_dropped_in_training_alone() -> None:
    block, x_BTD = elastic_block(dropout=0.5), torch.randn(2, 9, 16)
    assert (block.train()(x_BTD) != block(x_BTD)).any(-1).all()
    assert torch.equal(block.eval()(x_BTD), block(x_BTD))


def test_the_kernel_that_is_named_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for kind in map(type, BACKENDS.values()):
        real = kind.dense
        monkeypatch.setattr(
            kind, "dense", lambda self, *args, real=real, **more: (ran.append(self.name), real(self, *args, **more))[1]
        )
    elastic_block(dropout=0.0, backend="reference")(torch.randn(2, 9, 16))
    assert set(ran) == {"reference"}


@SUBNETS
def test_a_subnets_multiply_accumulates_are_those_of_the_formula(subnet: Subnet) -> None:
    frames, kernel, group = 20, 8, 8
    with torch.device("meta"):
        encoder = small()
        x_BTD = torch.empty(1, frames, 32)
    encoder.choose(subnet)
    made = (frames + 1) * subnet.dim * group * kernel  # an even kernel makes one frame more, which is cut off
    for heads, ffn_dim in zip(subnet.num_heads, subnet.ffn_dims, strict=True):
        wide = heads * HEAD_DIM
        made += frames * 4 * subnet.dim * wide + 2 * frames * frames * wide + frames * 2 * subnet.dim * ffn_dim
    assert count_macs(lambda: encoder(x_BTD)) == made


@pytest.mark.parametrize("head_dim", [None, 5])
@pytest.mark.parametrize(("dim", "heads", "ffn_dim", "depth"), [(16, 2, 24, 2), (24, 3, 48, 1), (32, 4, 64, 3)])
def test_a_subnet_equals_the_transformer_cut_out_of_it(
    dim: int, heads: int, ffn_dim: int, depth: int, head_dim: int | None
) -> None:
    encoder = small(head_dim)
    encoder.choose(Subnet(dim, (heads,) * depth, (ffn_dim,) * depth))
    x_BTD = torch.randn(2, 11, 32)
    out_BTD = encoder(x_BTD).last_BTD
    expected = cut_out(encoder, dim, heads, ffn_dim, depth)(x_BTD[..., :dim]).last_BTD
    torch.testing.assert_close(out_BTD[..., :dim], expected)
    assert (out_BTD[..., dim:] == 0).all()


@SUBNETS
def test_layers_that_a_subnet_lacks_hand_its_last_one_on(subnet: Subnet) -> None:
    encoder, depth = small(), len(subnet.num_heads)
    encoder.choose(subnet)
    output = encoder(torch.randn(2, 9, 32), layers=True)
    assert len(output.layers) == 4
    assert not any(layer[..., subnet.dim :].any() for layer in output.layers)
    for layer, before in zip(output.layers[1:], output.layers, strict=False):
        assert torch.equal(layer, before) == (depth == 0)
        depth = max(0, depth - 1)
    assert torch.equal(output.layers[-1], output.last_BTD)


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
    grad = encoder.blocks[0].feed_forward.expand.weight.grad
    assert (grad[:24, :16] != 0).any()
    assert (grad[24:] == 0).all()
    assert (grad[:, 16:] == 0).all()
    assert encoder.blocks[1].feed_forward.expand.weight.grad is None


@pytest.mark.parametrize(
    "subnet",
    [
        Subnet(40, (2,), (24,)),  # wider than all
        Subnet(12, (2,), (24,)),  # cuts a group of the position convolution
        Subnet(16, (5,), (24,)),
        Subnet(16, (2,), (72,)),
        Subnet(16, (2, 2), (24,)),
        Subnet(16, (2,) * 4, (24,) * 4),
    ],
    ids=str,
)
def test_what_is_no_part_of_the_whole_is_refused(subnet: Subnet) -> None:
    encoder = small()
    with pytest.raises(ConfigError, match="no part of"):
        encoder.choose(subnet)
    assert encoder.chosen == encoder.largest()


def test_a_mixer_of_other_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match="slices attention with 4 heads"):
        Elastic(Pattern([partial(Attention, num_heads=2)]), dims=(32,), heads=(4,), position_groups=4)


def test_groups_that_do_not_fit_are_refused_with_those_that_do() -> None:
    mixer = partial(Attention, num_heads=12)
    with torch.device("meta"):
        with pytest.raises(ConfigError, match="no multiples of 48") as caught:
            Elastic(mixer, position_groups=16)
        groups = int(caught.value.mend.rpartition("=")[2])
        Elastic(mixer, position_groups=groups)
