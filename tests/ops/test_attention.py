import itertools
import logging

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ossicle.core.errors import ConfigError
from ossicle.ops import attention
from ossicle.ops.attention import attend, attend_packed, check_backend
from ossicle.ops.attention_backends import BACKENDS, Case

gpu = pytest.mark.gpu
no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def brute_force(
    q: Tensor, k: Tensor, v: Tensor, valid: np.ndarray | None = None, window: int | None = None
) -> np.ndarray:
    """Softmax attention by loops, in float64."""
    q, k, v = (x.detach().double().cpu().numpy() for x in (q, k, v))
    rows, frames, heads, width = q.shape
    out = np.zeros_like(q)
    for b in range(rows):
        for h in range(heads):
            for t in range(frames):
                seen = [
                    u
                    for u in range(frames)
                    if (valid is None or valid[b, u]) and (window is None or abs(u - t) <= window)
                ]
                if not seen:
                    continue
                scores = np.array([q[b, t, h] @ k[b, u, h] for u in seen]) / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                out[b, t, h] = (weights / weights.sum()) @ v[b, seen, h]
    return out


def qkv(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(*shape, generator=generator).to(device, dtype) for _ in range(3)]


@pytest.mark.parametrize(
    ("backend", "window"),
    [*itertools.product(["auto", "sdpa", "reference"], [None, 0, 2]), ("blocked", 0), ("blocked", 2)],
)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_brute_force_in_float64(backend: str, window: int | None, masked: bool) -> None:
    q, k, v = qkv(3, 7, 2, 4, dtype=torch.float64)
    valid = torch.arange(7) < torch.tensor([7, 3, 1])[:, None] if masked else None
    out = attend(q, k, v, valid_BT=valid, window=window, backend=backend)
    expected = brute_force(q, k, v, None if valid is None else valid.numpy(), window)
    kept = np.ones((3, 7), bool) if valid is None else valid.numpy()
    np.testing.assert_allclose(out.numpy()[kept], expected[kept], atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
@hypothesis.given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), window=st.sampled_from([None, 1]))
@hypothesis.settings(max_examples=15, deadline=None)
def test_packed_attention_equals_one_utterance_at_a_time(backend: str, lengths: list[int], window: int | None) -> None:
    q, k, v = qkv(sum(lengths), 2, 8)
    edges = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    out = attend_packed(q, k, v, edges, max(lengths), window=window, backend=backend)
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        alone = brute_force(q[None, start:end], k[None, start:end], v[None, start:end], window=window)
        np.testing.assert_allclose(out[start:end].numpy(), alone[0], atol=1e-5)


def test_gradients_of_the_reference_pass_gradcheck() -> None:
    q, k, v = (x.requires_grad_() for x in qkv(1, 4, 2, 3, dtype=torch.float64))
    valid = torch.tensor([[True, True, True, False]])
    assert torch.autograd.gradcheck(lambda *x: attend(*x, valid_BT=valid, backend="reference"), (q, k, v))


def test_rows_without_a_real_key_stay_finite() -> None:
    q, k, v = qkv(2, 3, 1, 4)
    valid = torch.tensor([[True, True, True], [False, False, False]])
    for backend in ("sdpa", "reference"):
        assert attend(q, k, v, valid_BT=valid, backend=backend).isfinite().all()


def test_dropout_keeps_the_mean_of_the_output() -> None:
    torch.manual_seed(0)
    q, k, v = qkv(1, 50, 2, 8)
    for backend in ("sdpa", "reference"):
        draws = torch.stack([attend(q, k, v, dropout=0.3, backend=backend) for _ in range(400)])
        assert (draws[0] - draws[1]).abs().max() > 1e-3
        torch.testing.assert_close(draws.mean(0), attend(q, k, v), atol=0.12, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_attention_compiles_as_one_graph_before_any_eager_call(masked: bool, window: int | None) -> None:
    attention._choices.clear()
    torch._dynamo.reset()
    q, k, v = (x.requires_grad_() for x in qkv(2, 6, 2, 8))
    valid = torch.arange(6) < torch.tensor([6, 4])[:, None] if masked else None
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=False)
    out = compiled(q, k, v, valid_BT=valid, window=window)
    torch.testing.assert_close(out, attend(q, k, v, valid_BT=valid, window=window))
    out.square().sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_the_choice_is_logged_once_a_case_with_what_was_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    attention._choices.clear()
    q, k, v = qkv(1, 4, 1, 8)
    edges = torch.tensor([0, 4], dtype=torch.int32)
    with caplog.at_level(logging.INFO, logger="ossicle.ops.attention"):
        for _ in range(3):
            attend(q, k, v)
            attend_packed(q[0], k[0], v[0], edges, 4)
    assert len(caplog.messages) == 2
    assert "runs on native" in caplog.messages[0]
    assert "varlen runs on cuda, not on cpu" in caplog.messages[1]


def test_an_unknown_backend_is_refused_naming_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no backend 'flash'") as caught:
        check_backend("flash")
    for name in ("auto", "sdpa", "reference"):
        assert name in caught.value.mend


def test_a_backend_that_cannot_serve_is_refused_with_the_reasons_of_all() -> None:
    q, k, v = qkv(1, 4, 1, 8)
    with pytest.raises(ConfigError, match="runs on cuda, not on cpu") as caught:
        attend(q, k, v, backend="varlen")
    assert caught.value.mend.startswith("name one of: auto, native, sdpa, reference (not here: flash_attn ")


def test_a_package_that_is_absent_is_refused_before_a_device_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(BACKENDS["flash_attn"]), "missing", lambda _: "cannot be imported (No module)")
    with pytest.raises(ConfigError, match="'flash_attn' cannot be imported"):
        check_backend("flash_attn")


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case("cuda", torch.bfloat16, 64), "sdpa"),
        (Case("cuda", torch.bfloat16, 64, masked=True), "sdpa"),
        (Case("cuda", torch.bfloat16, 64, packed=True), "varlen"),
        (Case("cuda", torch.bfloat16, 64, windowed=True), "varlen"),
        (Case("cuda", torch.bfloat16, 64, dropout=True, packed=True), "sdpa"),
        (Case("cuda", torch.bfloat16, 64, masked=True, windowed=True), "blocked"),
        (Case("cpu", torch.float32, 64, windowed=True), "blocked"),
        (Case("cuda", torch.float32, 64, packed=True), "sdpa"),
        (Case("cuda", torch.bfloat16, 12, packed=True), "sdpa"),
        (Case("cpu", torch.float32, 64), "native"),
        (Case("cpu", torch.float64, 64), "sdpa"),
    ],
)
def test_without_the_flash_package_each_case_goes_to_the_best_of_torch(
    case: Case, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(BACKENDS["flash_attn"]), "missing", lambda _: "is not there")
    assert attention._first_able(case) == expected


def test_attention_has_a_shape_on_the_meta_device() -> None:
    x = torch.empty(2, 5, 3, 8, device="meta")
    assert attend(x, x, x).shape == x.shape


@gpu
@no_cuda
@pytest.mark.parametrize("backend", ["sdpa", "varlen", "flash_attn"])
@pytest.mark.parametrize("window", [None, 16])
def test_cuda_backends_equal_the_reference_in_float64(backend: str, window: int | None) -> None:
    case = Case("cuda", torch.bfloat16, 64, windowed=window is not None)
    if problem := BACKENDS[backend].refusal(case):
        pytest.skip(f"{backend} {problem}")
    q, k, v = (x.requires_grad_() for x in qkv(2, 200, 4, 64, dtype=torch.bfloat16, device="cuda"))
    out = attend(q, k, v, window=window, backend=backend)
    exact = attend(*(x.detach().double() for x in (q, k, v)), window=window, backend="reference")
    torch.testing.assert_close(out.double(), exact, atol=2e-2, rtol=2e-2)
    out.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))


@gpu
@no_cuda
@pytest.mark.parametrize("backend", ["sdpa", "varlen", "flash_attn"])
def test_cuda_packed_backends_equal_one_utterance_at_a_time(backend: str) -> None:
    if problem := BACKENDS[backend].refusal(Case("cuda", torch.bfloat16, 64, packed=True)):
        pytest.skip(f"{backend} {problem}")
    q, k, v = qkv(330, 4, 64, dtype=torch.bfloat16, device="cuda")
    edges = torch.tensor([0, 100, 130, 330], dtype=torch.int32, device="cuda")
    out = attend_packed(q, k, v, edges, 200, backend=backend)
    for start, end in ((0, 100), (100, 130), (130, 330)):
        parts = (x[None, start:end].double() for x in (q, k, v))
        alone = attend(*parts, backend="reference")[0]
        torch.testing.assert_close(out[start:end].double(), alone, atol=2e-2, rtol=2e-2)


@gpu
@no_cuda
def test_dense_attention_on_cuda_never_waits_for_the_device() -> None:
    q, k, v = qkv(2, 64, 4, 64, dtype=torch.bfloat16, device="cuda")
    valid = torch.arange(64, device="cuda") < torch.tensor([64, 30], device="cuda")[:, None]
    attend(q, k, v)
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(q, k, v, dropout=0.1)
        attend(q, k, v, valid_BT=valid)
        attend(q, k, v, window=8)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_output_follows_values_not_keys() -> None:
    q, k, v = qkv(1, 5, 1, 4)
    expected = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(attend(q, k, v, backend="reference"), expected)
