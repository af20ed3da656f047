# ty: ignore[invalid-argument-type, missing-attribute]  kernels are compiled from their text, for which types are those on the device
"""Bias and GELU on a GPU: a Triton kernel there, and one back that sums the bias's gradient on its way."""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

TILE_N: Final = 2
TILE_D: Final = 1024
LAUNCH: Final = {"num_warps": 4}
PROGRAMS: Final = 924
"""Programs of the way back, seven for each multiprocessor of an H100: each sums over its frames first."""


def forward(x_ND: Tensor, bias_D: Tensor) -> Tensor:
    """GELU(x + bias), of x's type, shape (N, D)."""
    frames, dim = x_ND.shape
    out_ND = torch.empty_like(x_ND)
    _forward_kernel[(triton.cdiv(frames, TILE_N), triton.cdiv(dim, TILE_D))](
        x_ND, bias_D, out_ND, frames, DIM=dim, TILE_N=TILE_N, TILE_D=TILE_D, **LAUNCH
    )
    return out_ND


def backward(grad_ND: Tensor, x_ND: Tensor, bias_D: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (N, D) and of the bias (D,): sums of each program, then of all, in one order."""
    frames, dim = x_ND.shape
    columns = triton.cdiv(dim, TILE_D)
    parts = min(triton.cdiv(PROGRAMS, columns), triton.cdiv(frames, TILE_N))
    x_grad_ND = torch.empty_like(x_ND)
    sums_PD = torch.empty(parts, dim, dtype=torch.float32, device=x_ND.device)
    _backward_kernel[(parts, columns)](
        grad_ND, x_ND, bias_D, x_grad_ND, sums_PD, frames, DIM=dim, TILE_N=TILE_N, TILE_D=TILE_D, **LAUNCH
    )
    return x_grad_ND, sums_PD.sum(0).to(bias_D.dtype)


@triton.jit
def normal(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The normal distribution's function, and exp(-x^2 / 2).

    By Abramowitz and Stegun's formula 7.1.26 for erf, within 1.5e-7: a third of the instructions of the library's erf,
    which can take longer than a kernel's reading and writing.
    """
    bell = tl.exp(-0.5 * x * x)
    u = 1.0 / (1.0 + 0.3275911 * 0.7071067811865476 * tl.abs(x))
    tail = u * (0.254829592 + u * (-0.284496736 + u * (1.421413741 + u * (-1.453152027 + u * 1.061405429))))
    beyond = 0.5 * tail * bell
    return tl.where(x < 0, beyond, 1.0 - beyond), bell


if knobs.runtime.interpret:  # which has no instructions of a GPU

    @triton.jit
    def _tanh(x: tl.tensor) -> tl.tensor:
        return 2.0 * tl.sigmoid(2.0 * x) - 1.0

else:

    @triton.jit
    def _tanh(x: tl.tensor) -> tl.tensor:
        """One instruction, within 5e-4 of the value (PTX ISA, tanh.approx.f32)."""
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def short_normal(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The normal distribution's function and its density, in what 16 bits can hold of them.

    The function is 1/2 + tanh/2 of what is odd and nearly a polynomial. Of degree five, fitted to the least error of
    GELU and of its slope over all x, it leaves 2.6e-5 and 1.1e-4, with a third of the instructions of :func:`normal`.
    Past six deviations the polynomial is held: the function is 0 or 1 there.
    """
    square = tl.minimum(x * x, 36.0)
    bent = _tanh(x * (0.797507885 + square * (0.0370056462 - 0.000351516809 * square)))
    slope = 0.3987539425 + square * (0.0555084693 - 0.00087879202 * square)
    return 0.5 + 0.5 * bent, (1.0 - bent * bent) * slope


@triton.jit
def gelu(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """A value times the normal distribution's function (arXiv 1606.08415), as exact as the type of the result asks."""
    if dtype.primitive_bitwidth == 16:
        below, _ = short_normal(x)
    else:
        below, _ = normal(x)
    return (x * below).to(dtype)


@triton.jit
def gelu_slope(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """The derivative of GELU, float32: the distribution, and x times its density."""
    if dtype.primitive_bitwidth == 16:
        below, density = short_normal(x)
    else:
        below, bell = normal(x)
        density = 0.3989422804014327 * bell
    return below + x * density


@triton.jit
def _forward_kernel(  # noqa: PLR0917
    x: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    frames: tl.tensor,
    DIM: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_D: tl.constexpr,
) -> None:
    n = tl.program_id(0).to(tl.int64) * TILE_N + tl.arange(0, TILE_N)
    d = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    there = (n < frames)[:, None] & (d < DIM)[None, :]
    place = n[:, None] * DIM + d[None, :]
    shift = tl.load(bias + d, mask=d < DIM, other=0.0).to(tl.float32)
    value = tl.load(x + place, mask=there, other=0.0).to(tl.float32) + shift[None, :]
    tl.store(out + place, gelu(value, out.dtype.element_ty), mask=there)


@triton.jit
def _backward_kernel(  # noqa: PLR0917
    grad: tl.tensor,
    x: tl.tensor,
    bias: tl.tensor,
    x_grad: tl.tensor,
    sums: tl.tensor,
    frames: tl.tensor,
    DIM: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_D: tl.constexpr,
) -> None:
    part = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * TILE_D + tl.arange(0, TILE_D)
    shift = tl.load(bias + d, mask=d < DIM, other=0.0).to(tl.float32)
    total = tl.zeros((TILE_D,), dtype=tl.float32)
    for turn in range(tl.cdiv(tl.cdiv(frames, TILE_N), tl.num_programs(0))):
        n = (part + turn * tl.num_programs(0)) * TILE_N + tl.arange(0, TILE_N)
        there = (n < frames)[:, None] & (d < DIM)[None, :]
        place = n[:, None] * DIM + d[None, :]
        arrived = tl.load(grad + place, mask=there, other=0.0).to(tl.float32)
        value = tl.load(x + place, mask=there, other=0.0).to(tl.float32) + shift[None, :]
        onward = arrived * gelu_slope(value, x_grad.dtype.element_ty)
        tl.store(x_grad + place, onward.to(x_grad.dtype.element_ty), mask=there)
        total += tl.sum(onward, 0)
    tl.store(sums + part * DIM + d, total, mask=d < DIM)
