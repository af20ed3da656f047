"""Mixers that are told where the frames stand that are left of a row."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from ossicle.encoder.transformer import Transformer
from ossicle.mixer import disentangled_attention, relative_attention
from ossicle.mixer.alibi_attention import AlibiAttentionStack
from ossicle.mixer.base import MixerFactory
from ossicle.mixer.disentangled_attention import DisentangledAttentionStack
from ossicle.mixer.relative_attention import RelativeAttentionStack
from ossicle.mixer.rotary import Rotary
from tests.mixer.loops import noisy

DIM, HEADS, FARTHEST = 24, 3, 12
PLACED: dict[str, MixerFactory] = {
    "alibi": AlibiAttentionStack(HEADS, 0.0),
    "rotary": lambda dim: Rotary(dim, HEADS, 0),
    "relative": RelativeAttentionStack(HEADS, 0.0, num_buckets=8, max_distance=FARTHEST),
    "disentangled": DisentangledAttentionStack(HEADS, 0.0, num_buckets=4, max_distance=FARTHEST),
}


def transformer(key: str) -> Transformer:
    sizes = {"dim": DIM, "num_layers": 2, "ffn_dim": 32, "position_kernel": 4, "position_groups": 4}
    return noisy(Transformer(PLACED[key], **sizes, dropout=0.0, layer_drop=0.0))


@pytest.mark.parametrize("key", PLACED)
def test_frames_that_are_kept_hear_each_other_as_if_the_others_were_silent(key: str) -> None:
    encoder = transformer(key).eval()
    x_BTD = torch.randn(2, 40, DIM)
    kept_BM = torch.tensor([[0, 3, 4, 11, 39], [1, 2, 8, 9, 15]])
    kept_BT = torch.zeros(2, 40, dtype=torch.bool).scatter(1, kept_BM, True)
    alone_BMD = encoder(x_BTD, kept_BM=kept_BM).last_BTD
    placed_BTD = encoder.norm(x_BTD + encoder.position(x_BTD))
    for block in encoder.blocks:
        placed_BTD = block(placed_BTD, kept_BT)
    torch.testing.assert_close(alone_BMD.flatten(0, 1), placed_BTD[kept_BT], atol=1e-5, rtol=1e-5)
    # closer together they hear each other otherwise
    near_BMD = encoder(placed := x_BTD.gather(1, kept_BM[..., None].expand(-1, -1, DIM))).last_BTD
    assert placed.shape == near_BMD.shape
    assert not torch.allclose(near_BMD, alone_BMD, atol=1e-3)


@pytest.mark.parametrize("key", PLACED)
@pytest.mark.parametrize("recompute", [False, True])
def test_blocks_with_places_compile_once_a_shape_and_have_the_same_gradients(key: str, recompute: bool) -> None:
    torch._dynamo.reset()
    plain = transformer(key)
    built = copy.deepcopy(plain)
    for block in built.blocks:
        assert isinstance(block, nn.Module)
        block.recompute = recompute
        block.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    x_BTD = torch.randn(2, 12, DIM)

    def gradients(encoder: Transformer, kept_BM: torch.Tensor) -> list[torch.Tensor]:
        encoder.zero_grad()
        encoder(x_BTD, kept_BM=kept_BM).last_BTD.square().sum().backward()
        return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]

    for kept in ([[0, 3, 4, 11], [1, 2, 8, 9]], [[0, 1, 2, 3], [7, 8, 9, 11]]):
        kept_BM = torch.tensor(kept)
        torch.testing.assert_close(gradients(built, kept_BM), gradients(plain, kept_BM), atol=1e-5, rtol=1e-4)
    with torch.compiler.set_stance("fail_on_recompile"):
        built(x_BTD, kept_BM=torch.tensor([[2, 3, 5, 7], [0, 1, 8, 10]]))


@pytest.mark.parametrize(
    ("key", "module"), [("relative", relative_attention), ("disentangled", disentangled_attention)]
)
def test_in_blocks_of_queries_they_are_what_they_are_at_once(
    key: str, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = transformer(key)
    x_BTD = torch.randn(2, 40, DIM)
    kept_BM = torch.tensor([[0, 3, 4, 11, 39], [1, 2, 8, 9, 15]])
    name = "attend_by_distance" if key == "relative" else "attend_biased"
    made = []
    for budget in (2**28, 2 * HEADS * 5 * 2):  # all queries, and two at a time
        attend = partial(getattr(module, name), budget=budget)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, attend)
            out_BMD = encoder(x_BTD, kept_BM=kept_BM).last_BTD
            made.append([out_BMD, *torch.autograd.grad(out_BMD.square().sum(), list(encoder.parameters()))])
    for whole, blocked in zip(*made, strict=True):
        torch.testing.assert_close(blocked, whole, atol=1e-4, rtol=1e-4)
