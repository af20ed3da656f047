import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ossicle.ops.distance_attention import attend_by_distance
from tests.mixer.loops import array, softmax_means
from tests.ops.apart import compiled, here, interpreted

PLACES = [0, 1, 4, 5, 6, 11, 30]


def inputs(rows: int, frames: int, heads: int, width: int) -> list[Tensor]:
    torch.manual_seed(frames)
    return [torch.randn(rows, frames, heads, width, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("budget", [2**28, 2 * 3 * 7 * 2])
@pytest.mark.parametrize("one_weight", [True, False])
@pytest.mark.parametrize("kind", ["distance", "places", "table", "both"])
def test_it_equals_a_loop_in_float64(kind: str, one_weight: bool, budget: int) -> None:
    q, k, v = inputs(2, 7, 3, 4)
    weight_BHT = torch.randn((1, 3, 1) if one_weight else (2, 3, 7), dtype=torch.float64)
    scored, placed = kind in {"table", "both"}, kind in {"places", "both"}
    reach = 8 if kind == "both" else 6  # of 11 and 30 frames apart the last score is
    score_RH = torch.randn(2 * reach + 1, 3, dtype=torch.float64)
    valid_BT = torch.arange(7) < torch.tensor([[7], [4]])
    places = PLACES if placed else range(7)
    out = attend_by_distance(
        q,
        k,
        v,
        weight_BHT,
        score_RH=score_RH if scored else None,
        place_BT=torch.tensor([PLACES, PLACES]) if placed else None,
        valid_BT=valid_BT,
        budget=budget,
    )
    for row in range(2):
        q_THK, k_THK, v_THK = (array(x[row]) for x in (q, k, v))
        weight_HT, length = array(weight_BHT.expand(2, 3, 7)[row]), 4 if row else 7

        def score(h: int, i: int, j: int) -> float:
            apart = places[j] - places[i]
            unit = float(score_RH[min(max(apart, -reach), reach) + reach, h]) if scored else -abs(apart)
            return q_THK[i, h] @ k_THK[j, h] / math.sqrt(4) + weight_HT[h, i] * unit  # noqa: B023  called at once

        expected = softmax_means(score, v_THK, lambda _, j: j < length)  # noqa: B023
        np.testing.assert_allclose(array(out[row])[:length], expected[:length], atol=1e-12)


# The reference is the equation in float64, with what the hash in plain torch drops.
CASES = """
import itertools, math
import torch
from ossicle.ops import distance_attention_triton as kernels
from ossicle.ops.dropout_hash import draw_seeds, keep_places

KINDS = {
    "table": (2, 70, 24, True, 0.25), "places": (1, 37, 16, False, 0.0), "distance": (2, 130, 64, True, 0.25),
    "both": (2, 70, 24, True, 0.25),
}

def check(device, dtype, tolerance, kinds=KINDS):
    torch.manual_seed(0)
    heads = 2
    for kind in kinds:
        rows, frames, width, masked, dropout = KINDS[kind]
        q, k, v, grad = (torch.randn(rows, frames, heads, width).to(dtype).double() for _ in range(4))
        weight = torch.rand(rows, heads, frames).double()
        scored, placed = kind in ("table", "both"), kind in ("places", "both")
        reach = frames if kind == "both" else frames - 1  # of up to 3 T frames apart
        score = torch.randn(heads, 2 * reach + 1).double() if scored else torch.zeros(0)
        place = torch.rand(rows, 3 * frames).argsort(1)[:, :frames].sort(1).values
        valid = torch.arange(frames) < torch.tensor([[frames], [frames // 3]]) if masked else None
        seeds = draw_seeds(torch.device(device))
        leaves = [x.clone().requires_grad_() for x in (q, k, v, weight, score)]
        at = place if placed else torch.arange(frames)[None]
        distance = at[:, None, :] - at[:, :, None]
        near = distance.clamp(-reach, reach) + reach
        unit = leaves[4][:, near].transpose(0, 1) if scored else -distance.abs()[:, None]
        logits = torch.einsum("bqhk,bthk->bhqt", *leaves[:2]) / math.sqrt(width) + leaves[3][..., None] * unit
        if masked:
            logits = logits.masked_fill(~valid[:, None, None], -1e30)
        keep = keep_places(seeds.cpu(), rows * heads * frames**2, dropout).view(logits.shape)
        assert keep.all() == (dropout == 0)
        wanted = torch.einsum("bhqt,bthk->bqhk", logits.softmax(-1) * keep / (1 - dropout), leaves[2])
        wanted.backward(grad)
        put = lambda x, kind: x.to(device, kind)
        given = kernels.Inputs(
            *(put(x, dtype) for x in (q, k, v)), put(weight, torch.float32),
            put(score, torch.float32) if scored else None,
            put(place, torch.int32) if placed else None,
            put(valid, torch.bool) if masked else None, seeds, dropout,
        )
        mixed, sums = kernels.forward(given)
        grads = kernels.backward(put(grad, dtype), given, mixed, sums)
        assert [x.dtype for x in (mixed, *grads)] == [dtype] * 4 + [torch.float32] * 2
        pairs = [(mixed, wanted), *zip(grads[:4], (leaf.grad for leaf in leaves))]
        pairs += [(grads[4], leaves[4].grad)] if scored else []
        for one, other in pairs:
            one = one.double().cpu()
            assert one.isfinite().all()
            torch.testing.assert_close(one, other, atol=tolerance * other.abs().max().item(), rtol=0)
"""


# The interpreter multiplies bfloat16's bits as if they were integers.
def test_the_kernels_equal_float64_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    code = CASES + "\ncheck('cpu', torch.float32, 1e-5, ['table', 'places', 'both'])"
    code += "\ncheck('cpu', torch.float16, 3e-3, ['distance'])"
    assert interpreted(code + "\nprint('equal')") == "equal"


@pytest.mark.parametrize(
    ("kind", "width"), [("distance", 64), ("places", 64), ("table", 64), ("table", 128), ("both", 64)]
)
def test_the_kernels_compile_for_a_gpu_that_is_not_here(kind: str, width: int) -> None:
    ours = pytest.importorskip("ossicle.ops.distance_attention_triton")
    x = torch.empty(1, 7, 2, width, dtype=torch.bfloat16, device="meta")
    there = torch.empty(0, device="meta")
    given = ours.Inputs(
        *(x, x, x, there),
        there if kind in {"table", "both"} else None,
        there if kind in {"places", "both"} else None,
        *(there, there, 0.1),
    )
    absent = {name: None for name, value in (("scores", given.score_HR), ("places", given.place_BT)) if value is None}
    kinds = dict.fromkeys(("heads", "frames", "reach", "threshold"), "i32") | dict.fromkeys(("scale", "gain"), "fp32")
    kinds |= {"places": "*i32", "valid": "*u8", "seeds": "*i32"}
    kinds |= dict.fromkeys(("weights", "scores", "sums", "weight_grad", "score_grad", "alongs"), "*fp32")
    for kernel, forth in ((ours._forward_kernel, True), (ours._query_kernel, False), (ours._key_kernel, False)):
        tiles = ours._tiles(given, forth=forth)
        launch = {name: tiles.pop(name) for name in ("num_warps", "num_stages")}
        assert compiled(kernel, {**tiles, **absent, "DROPS": True}, kinds, "*bf16", **launch)["cubin"]


@pytest.mark.parametrize("table", [True, False])
def test_shapes_types_and_operations_are_known_without_a_gpu(table: bool) -> None:
    with torch.device("meta"):
        q, k, v = (torch.empty(2, 9, 3, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        weight = torch.empty(2, 3, 9, requires_grad=True)
        score = torch.empty(3, 17, requires_grad=True) if table else None
        seeds = torch.empty(2, dtype=torch.int32)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        out = torch.ops.ossicle.distance_attention(q, k, v, weight, score, None, None, seeds, 0.1)[0]
        assert (out.shape, out.dtype) == (q.shape, torch.bfloat16)
        out.sum().backward()
    assert counter.get_total_flops() == (2 + 5) * 2 * (2 * 3 * 9 * 9 * 8)
    for leaf in (q, k, v, weight, *([] if score is None else [score])):
        assert leaf.grad is not None
        assert (leaf.grad.shape, leaf.grad.dtype) == (leaf.shape, leaf.dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 2e-2)])
def test_the_kernels_equal_float64_on_a_gpu(dtype: str, tolerance: float) -> None:
    here(CASES + f"\ncheck('cuda', torch.{dtype}, {tolerance})")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("table", [True, False])
def test_on_a_gpu_the_operation_says_what_it_says_on_a_cpu(table: bool) -> None:
    leaves = [x.detach().float().requires_grad_() for x in inputs(2, 50, 3, 32)]
    leaves += [torch.rand(2, 3, 50).requires_grad_(), *([torch.randn(99, 3).requires_grad_()] if table else [])]
    valid_BT = torch.arange(50) < torch.tensor([[50], [31]])
    found = []
    for device in ("cpu", "cuda"):
        here = [leaf.detach().to(device).requires_grad_() for leaf in leaves]
        score_RH = here[4] if table else None
        out = attend_by_distance(*here[:3], here[3], score_RH=score_RH, valid_BT=valid_BT.to(device))
        found.append([out, *torch.autograd.grad(out[valid_BT.to(device)].square().sum(), here)])
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-2, rtol=1e-2)
