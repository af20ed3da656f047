import pytest
import torch
from torch.nn import functional

from ossicle.ops.residual_norm import residual_norm
from tests.ops.apart import compiled, here, interpreted


def test_on_a_cpu_it_is_layer_norm_of_the_sum() -> None:
    torch.manual_seed(0)
    x, branch = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    weight, bias = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    out = residual_norm(x, branch, weight, bias, dropout=0.0, epsilon=1e-5)
    torch.testing.assert_close(out, functional.layer_norm(x + branch, (8,), weight, bias, 1e-5))


def test_dropout_takes_from_the_branch_alone_and_only_where_it_is_asked_for() -> None:
    torch.manual_seed(0)
    x, branch = torch.randn(400, 16), torch.ones(400, 16)
    weight, bias = torch.ones(16), torch.zeros(16)
    still = residual_norm(x, branch, weight, bias, dropout=0.0, epsilon=1e-5)
    torch.testing.assert_close(still, functional.layer_norm(x + 1, (16,)))
    torch.manual_seed(1)
    dropped = residual_norm(x, branch, weight, bias, dropout=0.5, epsilon=1e-5)
    torch.manual_seed(1)
    kept = functional.dropout(branch, 0.5)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    torch.testing.assert_close(dropped.std(-1).mean(), torch.ones(()) * 16**0.5 / 15**0.5, atol=1e-3, rtol=0)
    assert not torch.allclose(dropped, still)


# The reference is the equation in float64, with what the hash in plain torch drops.
CASES = """
import torch
from torch.nn import functional
from ossicle.ops import residual_norm_triton as kernels
from ossicle.ops.dropout_hash import draw_seeds, keep_places

def check(device, dtype, tolerance):
    torch.manual_seed(0)
    kernels.PROGRAMS = 3  # so that each has several turns
    for frames, dim, dropout in ((7, 24, 0.0), (37, 40, 0.25)):
        x, grad = (torch.randn(frames, dim, dtype=torch.float64) for _ in range(2))
        branch = torch.randn(frames, dim, dtype=torch.float64)
        x, grad, branch = (value.to(dtype).double() for value in (x, grad, branch))
        weight, bias = torch.randn(dim, dtype=torch.float64), torch.randn(dim, dtype=torch.float64)
        given = [value.to(device, dtype) for value in (x, branch)]
        norms = [value.to(device, torch.float32) for value in (weight, bias)]
        seeds = draw_seeds(torch.device(device))
        out, total, moments = kernels.forward(*given, *norms, seeds, dropout, 1e-5)
        kept = keep_places(seeds.cpu(), frames * dim, dropout).view(frames, dim)
        assert kept.all() == (dropout == 0)
        leaves = [value.clone().requires_grad_() for value in (x, branch, weight, bias)]
        wanted = functional.layer_norm(leaves[0] + leaves[1] * kept / (1 - dropout), (dim,), *leaves[2:], 1e-5)
        wanted.backward(grad)
        grads = kernels.backward(grad.to(device, dtype), total, moments, norms[0], seeds, dropout)
        assert [value.dtype for value in (out, *grads)] == [dtype, dtype, dtype, torch.float32, torch.float32]
        for one, other in zip((out, *grads), (wanted, *(leaf.grad for leaf in leaves)), strict=True):
            one = one.double().cpu()
            assert one.isfinite().all()
            torch.testing.assert_close(one, other, atol=tolerance * other.abs().max().item(), rtol=0)
"""


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_kernels_equal_float64_in_tritons_interpreter(dtype: str, tolerance: float) -> None:
    pytest.importorskip("triton")
    code = CASES + f"\ncheck('cpu', torch.{dtype}, {tolerance})\nprint('equal')"
    assert interpreted(code) == "equal"


@pytest.mark.parametrize("stored", ["*bf16", "*fp32"])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(stored: str) -> None:
    ours = pytest.importorskip("ossicle.ops.residual_norm_triton")
    known = {"DIM": 768, "BLOCK_D": 1024, "DROPS": True, "ROWS": 2}
    kinds = {"seeds": "*i32", "frames": "i32", "threshold": "i32", "gain": "fp32", "epsilon": "fp32"}
    kinds |= dict.fromkeys(("weight", "bias", "moments", "scale_parts", "shift_parts"), "*fp32")
    for kernel in (ours._forward_kernel, ours._backward_kernel):
        assert compiled(kernel, known, kinds, stored, **ours.LAUNCH)["cubin"]


def test_shapes_and_types_are_known_without_a_gpu() -> None:
    with torch.device("meta"):
        x = torch.empty(6, 8, requires_grad=True)
        branch = torch.empty(6, 8, dtype=torch.bfloat16, requires_grad=True)
        weight, bias = torch.empty(8, requires_grad=True), torch.empty(8, requires_grad=True)
        seeds = torch.empty(2, dtype=torch.int32)
    out = torch.ops.ossicle.residual_norm(x, branch, weight, bias, seeds, 0.1, 1e-5)[0]
    assert (out.shape, out.dtype) == (branch.shape, torch.bfloat16)
    out.sum().backward()
    for leaf in (x, branch, weight, bias):
        assert leaf.grad is not None
        assert (leaf.grad.shape, leaf.grad.dtype) == (leaf.shape, leaf.dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_kernels_equal_float64_on_a_gpu(dtype: str, tolerance: float) -> None:
    here(CASES + f"\ncheck('cuda', torch.{dtype}, {tolerance})")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_what_is_drawn_follows_the_default_generator() -> None:
    x, branch = torch.randn(2, 5, 768, device="cuda"), torch.randn(2, 5, 768, device="cuda")
    weight, bias = torch.ones(768, device="cuda"), torch.zeros(768, device="cuda")
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(residual_norm(x, branch, weight, bias, dropout=0.5, epsilon=1e-5))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_in_torch_it_adds_the_epsilon_that_it_is_given_and_has_autocasts_type() -> None:
    x, branch, ones, zeros = torch.randn(3, 8), torch.randn(3, 8), torch.ones(8), torch.zeros(8)
    total = x + branch
    variance = total.var(-1, correction=0, keepdim=True)
    expected = (total - total.mean(-1, keepdim=True)) / (variance + 0.5).sqrt()
    made = residual_norm(x, branch, ones, zeros, dropout=0.0, epsilon=0.5)
    torch.testing.assert_close(made, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert residual_norm(x, branch, ones, zeros, dropout=0.0, epsilon=0.5).dtype == torch.bfloat16
