import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ossicle.ops import softmax_cpu
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


def test_what_the_kernel_would_misread_is_refused() -> None:
    with pytest.raises(TypeError, match="bfloat16"):
        softmax_cpu.softmax_dropout(torch.zeros(2, 2).bfloat16(), None, torch.tensor(1), 1.0, 0.0, False)
    with pytest.raises(TypeError, match="contiguous"):
        softmax_cpu.softmax_dropout(torch.zeros(3, 2).mT, None, torch.tensor(1), 1.0, 0.0, False)


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


def test_nothing_is_dropped_at_probability_0_and_extreme_scores_stay_finite() -> None:
    assert threshold_of(0.0) == 0
    assert bool(keep_mask(torch.tensor(3), 50, 50, 0.0).all())
    scores = torch.tensor([[1e30, -1e30, 0.0], [-200.0, -200.0, -200.0]])
    weights, nothing = softmax_cpu.softmax_dropout(scores, None, torch.tensor(1), 1.0, 0.0, False)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0, 0.0], [1 / 3] * 3]))
    assert nothing.numel() == 0


def test_torch_can_trace_the_operators() -> None:
    scores = torch.randn(6, 5)
    weights, _ = softmax_cpu.softmax_dropout(scores, None, torch.tensor(1), 0.5, 0.2, True)
    torch.library.opcheck(softmax_cpu.softmax_dropout, (scores, None, torch.tensor(1), 0.5, 0.2, True))
    arguments = (weights, torch.randn(6, 5).bfloat16(), torch.tensor(1), 0.5, 0.2)
    torch.library.opcheck(softmax_cpu.softmax_dropout_backward, arguments)


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_another_kernel_serves() -> None:
    case = Case("cpu", torch.bfloat16, 64, dropout=True)
    assert "no C++ compiler" in str(BACKENDS["native"].refusal(case))
    assert BACKENDS["sdpa"].refusal(case) is None


def test_long_rows_without_dropout_hold_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    native = BACKENDS["native"]
    q, k, v = (x.detach().bfloat16() for x in drawn(0, 1, 40, 2, 8)[:3])
    wanted = native.dense(q, k, v, valid_BT=None, dropout=0.0, window=None)
    monkeypatch.setattr(type(native), "longest", 39)
    monkeypatch.setattr("ossicle.ops.attention_backends.cpu_attention", None)
    found = native.dense(q, k, v, valid_BT=None, dropout=0.0, window=None)
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-2)


def test_long_rows_with_dropout_stay_where_weights_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    native = BACKENDS["native"]
    monkeypatch.setattr(type(native), "longest", 39)
    monkeypatch.setattr(type(BACKENDS["sdpa"]), "dense", None)
    q, k, v = (x.detach().bfloat16() for x in drawn(0, 1, 40, 2, 8)[:3])
    assert native.dense(q, k, v, valid_BT=None, dropout=0.3, window=None).isfinite().all()


def test_the_source_comes_with_the_package() -> None:
    assert Path(softmax_cpu.__file__).with_name("softmax_cpu.cpp").is_file()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_in_blocks_it_is_the_same_and_keeps_no_block(monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    kept: list[int] = []
    valid_BT = torch.arange(23) < torch.tensor([23, 1, 9])[:, None]
    whole = [x.detach().float().requires_grad_() for x in drawn(4, 3, 23, 2, 8)]
    if dropout:  # each block draws a seed of its own: all take the same here
        monkeypatch.setattr("ossicle.ops.attention_cpu.draw_seed", lambda: torch.tensor(11))
    wanted = gradients(cpu_attention, whole, valid_BT, 0.0)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        torch.manual_seed(5)
        out = cpu_attention(*whole[:3], valid_BT, dropout, budget=3 * 2 * 23 * 5)
    assert max(kept) <= 3 * 2 * 23 * 8  # queries, keys and values; scores of a block are 3 x 2 x 5 x 23 of five blocks
    assert len(kept) < 40
    found = (out, *torch.autograd.grad(out, whole[:3], whole[3].to(out.dtype)))
    if dropout:
        again = gradients(lambda *x: cpu_attention(*x, budget=3 * 2 * 23 * 5), whole, valid_BT, dropout)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        assert not torch.allclose(found[0], wanted[0])
    else:
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs)
