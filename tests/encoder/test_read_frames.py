"""Frames of the output that nothing reads: the rest is the same without them, and they cost no feed-forward network."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ossicle.encoder.backbone import Backbone
from ossicle.encoder.base import Encoder
from ossicle.encoder.stack import Stack
from ossicle.frontend.logmel import LogMel
from ossicle.mixer.reused_attention import ReusedAttentionStack
from ossicle.ops.masking import gather_frames
from tests.encoder.test_contract import NAMES, encoder

READ = torch.tensor([[0, 3, 4, 9, 17], [1, 2, 10, 11, 19]])
SELECTING = ["transformer", "transformer, norms first", "conformer"]


def whole(built: Encoder) -> Backbone:
    """A model around an encoder, to which frames are given as they go into it."""
    return Backbone(LogMel(num_mels=8), built).double()


def gradients(model: Backbone, x_BTD: Tensor, read_BM: Tensor, *, alone: bool) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Frames that are read, told to the encoder or taken from all of its own, and the gradients of a loss on them."""
    x_BTD = x_BTD.clone().requires_grad_()
    if alone:
        out_BMD = model.encode(x_BTD, read_BM=read_BM).last_BTD
    else:
        out_BMD = gather_frames(model.encode(x_BTD).last_BTD, read_BM)
    weights = torch.randn(out_BMD.shape, dtype=out_BMD.dtype, generator=torch.Generator().manual_seed(2))
    named = dict(model.encoder.named_parameters())
    found = torch.autograd.grad((out_BMD * weights).sum(), [x_BTD, *named.values()], allow_unused=True)
    return out_BMD, dict(zip(["x", *named], found, strict=True))


def held_alike(model: Backbone, x_BTD: Tensor, read_BM: Tensor = READ) -> None:
    ours, ours_by_name = gradients(model, x_BTD, read_BM, alone=True)
    theirs, theirs_by_name = gradients(model, x_BTD, read_BM, alone=False)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    assert ours_by_name.keys() == theirs_by_name.keys()
    for name, theirs_grad in theirs_by_name.items():
        torch.testing.assert_close(ours_by_name[name], theirs_grad, atol=1e-10, rtol=0, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_frames_that_are_read_and_their_gradients_are_those_of_the_whole(name: str) -> None:
    built = encoder(name)
    assert built.selects == (name in SELECTING)
    frames = 60  # 20 frames or more come out of the slowest of them
    x_BTD = torch.randn(2, frames, built.input_dim, dtype=torch.float64)
    read_BM = READ % built(x_BTD.float()).last_BTD.shape[1]
    held_alike(whole(built), x_BTD, read_BM.sort(1).values)


@pytest.mark.parametrize("name", ["transformer", "conformer", "branchformer"])
def test_a_last_block_that_borrows_or_is_made_again_or_skipped_gives_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = encoder(name, ReusedAttentionStack(2, 0.0))
    model, x_BTD = whole(built), torch.randn(2, 20, built.input_dim, dtype=torch.float64)
    held_alike(model, x_BTD)
    for block in built.blocks:
        block.recompute = True
    held_alike(model, x_BTD)
    assert isinstance(built, Stack)
    built.layer_drop = 0.5
    drawn = [1.0, 1.0, 0.0] * 2  # the last of three is left out, in both passes
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: torch.tensor(drawn.pop(0)))
        held_alike(model, x_BTD)
    assert drawn == []


def test_frames_that_went_on_alone_are_read_by_their_places_among_these() -> None:
    built = encoder("transformer")
    model, x_BTD = whole(built), torch.randn(2, 30, built.input_dim, dtype=torch.float64)
    kept_BM = torch.arange(0, 30, 1)[None, 5:25].repeat(2, 1)
    read = model.encode(x_BTD, kept_BM=kept_BM, read_BM=READ).last_BTD
    torch.testing.assert_close(read, gather_frames(model.encode(x_BTD, kept_BM=kept_BM).last_BTD, READ))


@pytest.mark.parametrize("name", SELECTING)
def test_frames_that_nothing_reads_cost_no_feed_forward_network(name: str) -> None:
    built = encoder(name)
    x_BTD = torch.randn(2, 20, built.input_dim)

    def products(read_BM: Tensor | None) -> int:
        with FlopCounterMode(display=False) as counter:
            built(x_BTD, read_BM=read_BM)
        return counter.get_total_flops()

    unread, dim, ffn_dim = 2 * (20 - READ.shape[1]), 24, 48
    assert products(None) - products(READ) == unread * 2 * (2 * dim * ffn_dim)


@pytest.mark.parametrize("name", SELECTING)
def test_a_block_compiles_as_one_graph_with_frames_that_are_read(name: str) -> None:
    block = encoder(name).blocks[-1]
    x_BTD = torch.randn(2, 20, 24)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x_BTD, None, READ), block(x_BTD, None, READ))


def test_layers_and_some_frames_are_not_asked_for_at_once() -> None:
    built = encoder("transformer")
    with pytest.raises(AssertionError, match="some alone"):
        whole(built).encode(torch.randn(2, 20, 24, dtype=torch.float64), read_BM=READ, layers=True)
