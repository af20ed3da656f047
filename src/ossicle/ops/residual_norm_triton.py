# ty: ignore[invalid-argument-type]  kernels are compiled from their text, for which types are those on the device
"""Dropout, residual sum and layer norm on a GPU: one Triton kernel there and one back, which draws the dropout again.

A program takes four frames at a time, since one call of the generator (Philox: Salmon et al., SC 2011) gives
four numbers: at one number a call, drawing would take longer than the reading and writing.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

LAUNCH: Final = {"num_warps": 4}
ROWS: Final = 4
"""Frames of a program's step: what a call of the generator serves."""
PROGRAMS: Final = 1056
"""Programs of the way back, eight for each multiprocessor of an H100: each sums over its frames first."""


def forward(  # noqa: PLR0917
    x_ND: Tensor, branch_ND: Tensor, weight_D: Tensor, bias_D: Tensor, seed_1: Tensor, dropout: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm (N, D) in the branch's type, sum (N, D) in x's, mean and inverse deviation of each frame (N, 2)."""
    frames, dim = x_ND.shape
    normed_ND = torch.empty_like(branch_ND)
    sum_ND = torch.empty_like(x_ND)
    moments_N2 = x_ND.new_empty(frames, 2, dtype=torch.float32)
    _forward_kernel[(triton.cdiv(frames, ROWS),)](
        x_ND, branch_ND, weight_D, bias_D, seed_1, normed_ND, sum_ND, moments_N2, frames, dropout, epsilon,
        DIM=dim, BLOCK_D=triton.next_power_of_2(dim), DROPS=dropout > 0, **LAUNCH,
    )  # fmt: skip
    return normed_ND, sum_ND, moments_N2


def backward(  # noqa: PLR0917
    grad_ND: Tensor,
    sum_ND: Tensor,
    moments_N2: Tensor,
    weight_D: Tensor,
    seed_1: Tensor,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of the branch (N, D), of weight and of bias (D,); the branch's is of ``grad``'s type."""
    frames, dim = sum_ND.shape
    x_grad_ND = torch.empty_like(sum_ND)
    branch_grad_ND = torch.empty_like(grad_ND)
    programs = min(PROGRAMS, triton.cdiv(frames, ROWS))
    parts_P2D = torch.empty(programs, 2, dim, dtype=torch.float32, device=grad_ND.device)
    _backward_kernel[(programs,)](
        grad_ND, sum_ND, moments_N2, weight_D, seed_1, x_grad_ND, branch_grad_ND, parts_P2D, frames, dropout,
        DIM=dim, BLOCK_D=triton.next_power_of_2(dim), DROPS=dropout > 0, **LAUNCH,
    )  # fmt: skip
    weight_grad_D, bias_grad_D = (parts_PD.sum(0).to(weight_D.dtype) for parts_PD in parts_P2D.unbind(1))
    return x_grad_ND, branch_grad_ND, weight_grad_D, bias_grad_D


@triton.jit
def _kept(  # noqa: PLR0917
    branch: tl.tensor, number: tl.constexpr, seed: tl.tensor, place: tl.tensor, dropout: tl.tensor, DROPS: tl.constexpr
) -> tl.tensor:
    """What dropout leaves of a frame's branch, the ``number``-th of its four."""
    if DROPS:
        drawn = tl.rand4x(seed, place)  # the compiler draws once for all four frames
        branch = tl.where(drawn[number] < dropout, 0.0, branch / (1.0 - dropout))
    return branch


@triton.jit
def _forward_kernel(  # noqa: PLR0917
    x: tl.tensor,
    branch: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    seeds: tl.tensor,
    normed: tl.tensor,
    sums: tl.tensor,
    moments: tl.tensor,
    frames: tl.tensor,
    dropout: tl.tensor,
    epsilon: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DROPS: tl.constexpr,
) -> None:
    group = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    there = d < DIM
    scale = tl.load(weight + d, mask=there, other=0.0).to(tl.float32)
    shift = tl.load(bias + d, mask=there, other=0.0).to(tl.float32)
    seed = tl.load(seeds)
    for number in tl.static_range(4):
        frame = group * 4 + number
        inside = there & (frame < frames)
        place = frame * DIM + d
        own = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
        own = _kept(own, number, seed, group * DIM + d, dropout, DROPS)
        total = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + own
        rounded = total.to(sums.dtype.element_ty)
        tl.store(sums + place, rounded, mask=inside)
        total = tl.where(there, rounded.to(tl.float32), 0.0)
        mean = tl.sum(total, 0) / DIM
        centred = tl.where(there, total - mean, 0.0)
        inverse = tl.rsqrt(tl.sum(centred * centred, 0) / DIM + epsilon)
        tl.store(normed + place, (centred * inverse * scale + shift).to(normed.dtype.element_ty), mask=inside)
        tl.store(moments + frame * 2, mean, mask=frame < frames)
        tl.store(moments + frame * 2 + 1, inverse, mask=frame < frames)


@triton.jit
def _backward_kernel(  # noqa: PLR0917
    grad: tl.tensor,
    sums: tl.tensor,
    moments: tl.tensor,
    weight: tl.tensor,
    seeds: tl.tensor,
    x_grad: tl.tensor,
    branch_grad: tl.tensor,
    parts: tl.tensor,
    frames: tl.tensor,
    dropout: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DROPS: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    there = d < DIM
    scale = tl.load(weight + d, mask=there, other=0.0).to(tl.float32)
    seed = tl.load(seeds)
    scale_grad = tl.zeros((BLOCK_D,), dtype=tl.float32)
    shift_grad = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for turn in range(tl.cdiv(tl.cdiv(frames, 4), tl.num_programs(0))):
        group = program + turn * tl.num_programs(0)
        for number in tl.static_range(4):
            frame = group * 4 + number
            inside = there & (frame < frames)
            place = frame * DIM + d
            arrived = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
            total = tl.load(sums + place, mask=inside, other=0.0).to(tl.float32)
            mean = tl.load(moments + frame * 2, mask=frame < frames, other=0.0)
            inverse = tl.load(moments + frame * 2 + 1, mask=frame < frames, other=0.0)
            normed = tl.where(there, (total - mean) * inverse, 0.0)
            scale_grad += arrived * normed
            shift_grad += arrived
            inner = arrived * scale
            # what changes a frame's mean or its deviation is taken away by the norm
            along = (inner - tl.sum(inner, 0) / DIM - normed * (tl.sum(inner * normed, 0) / DIM)) * inverse
            tl.store(x_grad + place, along.to(x_grad.dtype.element_ty), mask=inside)
            own = _kept(along, number, seed, group * DIM + d, dropout, DROPS)
            tl.store(branch_grad + place, own.to(branch_grad.dtype.element_ty), mask=inside)
    tl.store(parts + program * 2 * DIM + d, scale_grad, mask=there)
    tl.store(parts + (program * 2 + 1) * DIM + d, shift_grad, mask=there)
