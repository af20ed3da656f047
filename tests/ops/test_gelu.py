import pytest
import torch
from torch.nn import functional

from ossicle.ops.gelu import linear_gelu
from tests.ops.apart import compiled, here, interpreted


def test_on_a_cpu_it_is_torchs_linear_and_gelu() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 4), torch.randn(6, 4), torch.randn(6)
    torch.testing.assert_close(linear_gelu(x, weight, bias), functional.gelu(x @ weight.T + bias))


CASES = """
import torch
from torch.nn import functional
from ossicle.ops import gelu_triton as kernels

def check(device, dtype, tolerance):
    torch.manual_seed(0)
    kernels.PROGRAMS = 6  # so that each has several turns
    for frames, dim in ((5, 24), (130, 300)):
        x, grad = (torch.randn(frames, dim, dtype=torch.float64) for _ in range(2))
        x[0, :8] = torch.tensor([-60.0, -9, -3, -1e-3, 0, 1e-3, 9, 60])
        x, grad = x.to(dtype).double(), grad.to(dtype).double()
        bias = torch.randn(dim, dtype=torch.float64)
        bias[:8] = 0
        given = [value.to(device, dtype) for value in (x, grad)]
        shift = bias.to(device, torch.float32)
        leaves = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
        wanted = functional.gelu(leaves[0] + leaves[1])
        wanted.backward(grad)
        out = kernels.forward(given[0], shift)
        grads = kernels.backward(given[1], given[0], shift)
        assert [value.dtype for value in (out, *grads)] == [dtype, dtype, torch.float32]
        for one, other in zip((out, *grads), (wanted, *(leaf.grad for leaf in leaves)), strict=True):
            scale = 1 if dtype == torch.float32 else other.abs().max().item()
            torch.testing.assert_close(one.double().cpu(), other, atol=tolerance * scale, rtol=tolerance)
"""


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_the_kernels_equal_float64_in_tritons_interpreter(dtype: str, tolerance: float) -> None:
    pytest.importorskip("triton")
    code = CASES + f"\ncheck('cpu', torch.{dtype}, {tolerance})\nprint('equal')"
    assert interpreted(code) == "equal"


@pytest.mark.parametrize("stored", ["*bf16", "*fp32"])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(stored: str) -> None:
    ours = pytest.importorskip("ossicle.ops.gelu_triton")
    known = {"DIM": 3072, "TILE_N": ours.TILE_N, "TILE_D": ours.TILE_D}
    kinds = {"bias": "*fp32", "sums": "*fp32", "frames": "i32"}
    for kernel in (ours._forward_kernel, ours._backward_kernel):
        assert compiled(kernel, known, kinds, stored, **ours.LAUNCH)["cubin"]


def test_shapes_and_types_are_known_without_a_gpu() -> None:
    with torch.device("meta"):
        x = torch.empty(6, 8, dtype=torch.bfloat16, requires_grad=True)
        bias = torch.empty(8, requires_grad=True)
    out = torch.ops.ossicle.bias_gelu(x, bias)
    assert (out.shape, out.dtype) == (x.shape, torch.bfloat16)
    out.sum().backward()
    for leaf in (x, bias):
        assert leaf.grad is not None
        assert (leaf.grad.shape, leaf.grad.dtype) == (leaf.shape, leaf.dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_the_kernels_equal_float64_on_a_gpu(dtype: str, tolerance: float) -> None:
    here(CASES + f"\ncheck('cuda', torch.{dtype}, {tolerance})")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_linear_and_gelu_with_their_gradients_are_torchs() -> None:
    torch.manual_seed(0)
    given = torch.randn(3, 50, 64), 0.1 * torch.randn(128, 64), torch.randn(128)
    found = []
    for call in (linear_gelu, lambda x, weight, bias: functional.gelu(functional.linear(x, weight, bias))):
        leaves = [value.cuda().requires_grad_() for value in given]
        out = call(*leaves)
        out.square().sum().backward()
        found.append((out, *(leaf.grad for leaf in leaves)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
