# ty: ignore[invalid-argument-type]  kernels are compiled from their text, for which types are those on the device
"""Bias and GELU on a GPU: a Triton kernel there, and one back that sums the bias's gradient on its way."""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_N: Final = 16
TILE_D: Final = 256
LAUNCH: Final = {"num_warps": 8}
PROGRAMS: Final = 1056
"""Programs of the way back, eight for each multiprocessor of an H100: each sums over its frames first."""


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


@triton.jit
def gelu(x: tl.tensor) -> tl.tensor:
    """A value times the normal distribution's function (arXiv 1606.08415)."""
    below, _ = normal(x)
    return x * below


@triton.jit
def gelu_slope(x: tl.tensor) -> tl.tensor:
    """The derivative of GELU: the distribution, and x times its density."""
    below, bell = normal(x)
    return below + x * 0.3989422804014327 * bell


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
    tl.store(out + place, gelu(value).to(out.dtype.element_ty), mask=there)


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
        onward = arrived * gelu_slope(value)
        tl.store(x_grad + place, onward.to(x_grad.dtype.element_ty), mask=there)
        total += tl.sum(onward, 0)
    tl.store(sums + part * DIM + d, total, mask=d < DIM)
