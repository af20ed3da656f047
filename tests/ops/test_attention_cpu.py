import math
import platform
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ossicle.ops import attention_cpu, native
from ossicle.ops.attention_backends import BACKENDS, Case
from ossicle.ops.attention_cpu import cpu_attention
from ossicle.ops.dropout_hash import draw_seed, keep_mask, threshold_of


def written_out(q: Tensor, k: Tensor, v: Tensor, valid_BT: Tensor | None, dropout: float) -> Tensor:
    """Attention in float64 with the mask of the hash, drawn from torch's generator as it stands."""
    rows, frames, heads, width = q.shape
    scores = torch.einsum("bqhk,bthk->bhqt", q, k) / math.sqrt(width)
    if valid_BT is not None:
        scores = scores.masked_fill(~valid_BT[:, None, None], -math.inf)
    kept = keep_mask(draw_seed(), rows * heads * frames, frames, dropout).view(scores.shape)
    return torch.einsum("bhqt,bthk->bqhk", scores.softmax(-1) * kept / (1 - dropout), v)


def drawn(seed: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(4)]


def gradients(call: Callable[..., Tensor], tensors: list[Tensor], *rest: object) -> tuple[Tensor, ...]:
    torch.manual_seed(5)
    out = call(*tensors[:3], *rest)
    return out, *torch.autograd.grad(out, tensors[:3], tensors[3].to(out.dtype))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.6])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("frames", [1, 7, 67])
def test_outputs_and_gradients_are_those_of_float64_with_the_same_mask(
    frames: int, dtype: torch.dtype, tolerance: float, dropout: float, masked: bool
) -> None:
    exact = [x.detach().to(dtype).double().requires_grad_() for x in drawn(frames, 3, frames, 2, 8)]
    valid_BT = torch.arange(frames) < torch.tensor([frames, 1, max(1, frames // 2)])[:, None] if masked else None
    wanted = gradients(written_out, exact, valid_BT, dropout)
    found = gradients(cpu_attention, [x.detach().to(dtype).requires_grad_() for x in exact], valid_BT, dropout)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=tolerance * max(1, theirs.abs().max().item()), rtol=0)


def test_autocast_leaves_scores_in_float32() -> None:
    q, k, v = (x.detach().bfloat16() for x in drawn(1, 2, 30, 2, 8)[:3])
    wanted = cpu_attention(q, k, v, None, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cpu_attention(q, k, v, None, 0.0), wanted)


def test_scores_of_bfloat16_are_not_rounded_to_it() -> None:
    q, k, v = (scale * x.detach().bfloat16() for scale, x in zip((4, 4, 1), drawn(1, 2, 30, 2, 8)[:3], strict=True))
    wanted = written_out(q.double(), k.double(), v.double(), None, 0.0)
    torch.testing.assert_close(cpu_attention(q, k, v, None, 0.0).double(), wanted, atol=2e-2, rtol=0)


def test_without_dropout_nothing_is_drawn_from_torchs_generator() -> None:
    before = torch.get_rng_state()
    cpu_attention(*(torch.randn(1, 3, 2, 8, generator=torch.Generator().manual_seed(0)) for _ in range(3)), None, 0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_drop_as_often_as_asked_and_differ_between_rows_columns_and_seeds() -> None:
    torch.manual_seed(0)
    first, second = (keep_mask(draw_seed(), 700, 701, 0.3) for _ in range(2))
    deviation = math.sqrt(0.3 * 0.7 / first.numel())
    for mask in (first, second):
        assert abs(1 - mask.double().mean().item() - 0.3) < 4 * deviation
        pairs = [(mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])]
        for one, other in (*pairs, (first, second)):
            together = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1]
            assert abs(together.item()) < 4 / math.sqrt(one.numel())


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_another_kernel_serves() -> None:
    case = Case("cpu", torch.bfloat16, 64, dropout=True)
    assert "no C++ compiler" in str(BACKENDS["native"].refusal(case))
    assert BACKENDS["sdpa"].refusal(case) is None


def test_the_source_comes_with_the_package() -> None:
    for name in ("attention_cpu.cpp", "products.hpp"):
        assert Path(attention_cpu.__file__).with_name(name).is_file()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 20, 80])
@pytest.mark.parametrize("frames", [61, 480, 502, 975])  # blocks of queries and of keys that are whole, begun, several
def test_blocks_of_queries_and_keys_are_one(frames: int, width: int, kind: torch.dtype) -> None:
    exact = [x.detach().to(kind).double().requires_grad_() for x in drawn(frames, 2, frames, 1, width)]
    valid_BT = torch.arange(frames) < torch.tensor([frames, frames - 7])[:, None]
    wanted = gradients(written_out, exact, valid_BT, 0.2)
    found = gradients(cpu_attention, [x.detach().to(kind).requires_grad_() for x in exact], valid_BT, 0.2)
    tolerance = 5e-6 if kind == torch.float32 else 2e-2
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=tolerance * max(1, theirs.abs().max().item()), rtol=0)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_maps_laid_out_in_any_way_are_read_where_they_lie(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    together = torch.randn(3, 19, 3, 2, 8).to(kind)
    q, k, v = (x.requires_grad_() for x in together.unbind(2))
    across = torch.randn(3, 8, 2, 19).to(kind).permute(0, 3, 2, 1)  # the width is not contiguous
    apart = [x.detach().contiguous().requires_grad_() for x in (q, k, v)]
    ours = torch.autograd.grad(cpu_attention(q, k, v, None, 0.0), (q, k, v), across)
    theirs = torch.autograd.grad(cpu_attention(*apart, None, 0.0), apart, across.contiguous())
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(
        cpu_attention(across, k, v, None, 0.0), cpu_attention(across.contiguous(), *apart[1:], None, 0.0)
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_row_without_any_real_key_hears_all_alike_and_moves_no_score(kind: torch.dtype) -> None:
    q, k, v = (x.detach().to(kind).requires_grad_() for x in drawn(3, 2, 33, 2, 8)[:3])
    valid_BT = torch.tensor([True, False])[:, None].expand(2, 33)
    out = cpu_attention(q, k, v, valid_BT, 0.0)
    torch.testing.assert_close(out[1].float(), v[1].float().mean(0).expand(33, 2, 8), atol=1e-2, rtol=0)
    grads = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert all(grad.isfinite().all() for grad in grads)
    for grad in grads[:2]:
        assert grad[0].any()
        assert not grad[1].any()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_extreme_scores_stay_finite(kind: torch.dtype) -> None:
    q, k, v = (scale * x.detach().to(kind) for scale, x in zip((1e15, 1e15, 1), drawn(3, 2, 33, 2, 8)[:3], strict=True))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = cpu_attention(q, k, v, None, 0.0)
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.float().square().sum(), (q, k, v)))


def test_memory_grows_with_frames_and_not_with_their_square() -> None:
    kept: list[int] = []
    q, k, v = (torch.randn(1, 700, 2, 8, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        cpu_attention(q, k, v, None, 0.1)
    assert kept
    assert max(kept) == 700 * 2 * 8


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_heads_shared_out_over_threads_are_those_of_one(threads: int) -> None:
    before = torch.get_num_threads()
    x = drawn(6, 1, 50, 4, 8)
    torch.set_num_threads(1)
    try:
        wanted = gradients(cpu_attention, [y.detach().float().requires_grad_() for y in x], None, 0.3)
        torch.set_num_threads(threads)
        found = gradients(cpu_attention, [y.detach().float().requires_grad_() for y in x], None, 0.3)
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_what_the_kernel_would_misread_is_refused() -> None:
    x = torch.zeros(1, 3, 2, 8)
    with pytest.raises(TypeError, match="float64"):
        cpu_attention(x.double(), x.double(), x.double(), None, 0.0)
    with pytest.raises(TypeError, match="bfloat16"):
        cpu_attention(x, x.bfloat16(), x, None, 0.0)
    with pytest.raises(TypeError, match="of one shape"):
        cpu_attention(x, x[:, :2], x[:, :2], None, 0.0)


def test_nothing_is_dropped_at_probability_0() -> None:
    assert threshold_of(0.0) == 0
    assert bool(keep_mask(torch.tensor(3), 50, 50, 0.0).all())


@pytest.mark.parametrize("masked", [False, True])
def test_torch_can_trace_the_operators(masked: bool) -> None:
    q, k, v = (torch.randn(2, 5, 2, 8, requires_grad=True) for _ in range(3))
    valid_BT = torch.arange(5) < torch.tensor([5, 3])[:, None] if masked else None
    torch.library.opcheck(attention_cpu._attend, (q, k, v, valid_BT, torch.tensor(1), 0.2))
    compiled = torch.compile(cpu_attention, backend="aot_eager", fullgraph=True)
    found = gradients(compiled, [q, k, v, torch.ones(2, 5, 2, 8)], valid_BT, 0.0)
    wanted = gradients(cpu_attention, [q, k, v, torch.ones(2, 5, 2, 8)], valid_BT, 0.0)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_products_are_counted() -> None:
    q, k, v = (torch.randn(2, 5, 3, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 3 * 5 * 5 * 8
    with FlopCounterMode(display=False) as counter:
        out = cpu_attention(q, k, v, None, 0.0)
    assert counter.get_total_flops() == 2 * product
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 5 * product


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="names instructions of x86")
@pytest.mark.parametrize("without", [("avx512bf16",), ("avx512f",), ("avx",)], ids=["floats", "avx2", "sse"])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 2e-2)])
def test_processors_with_less_have_the_same(
    without: tuple[str, ...], kind: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = native.build(attention_cpu.CODE.file, flags=(*native.FLAGS, *(f"-mno-{name}" for name in without)))
    attention_cpu._declare(library)
    monkeypatch.setattr(attention_cpu, "CODE", SimpleNamespace(library=library))
    for frames, width in ((67, 20), (975, 64)):
        exact = [x.detach().to(kind).double().requires_grad_() for x in drawn(frames, 2, frames, 2, width)]
        valid_BT = torch.arange(frames) < torch.tensor([frames, frames - 7])[:, None]
        wanted = gradients(written_out, exact, valid_BT, 0.2)
        found = gradients(cpu_attention, [x.detach().to(kind).requires_grad_() for x in exact], valid_BT, 0.2)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(
                ours.double(), theirs, atol=tolerance * max(1, theirs.abs().max().item()), rtol=0
            )
