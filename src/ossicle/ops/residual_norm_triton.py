# ty: ignore[invalid-argument-type]  kernels are compiled from their text, for which types are those on the device
"""Dropout, residual sum and layer norm on a GPU: one Triton kernel there and one back, which draws the dropout again.

A program reads several frames before it computes anything, since it waits for memory.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossicle.ops.dropout_triton import drops, kept

LAUNCH: Final = {"num_warps": 4}
FORWARD_ROWS: Final = 2
BACKWARD_ROWS: Final = 1
"""Frames that a program has in hand at once: measured (docs/results/step_gpu.md)."""
PROGRAMS: Final = 1056
"""Programs of the way back, eight for each multiprocessor of an H100: each sums over its frames first."""


def forward(  # noqa: PLR0917
    x_ND: Tensor, branch_ND: Tensor, weight_D: Tensor, bias_D: Tensor, seeds_2: Tensor, dropout: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm (N, D) in the branch's type, sum (N, D) in x's, mean and inverse deviation of each frame (N, 2)."""
    frames, dim = x_ND.shape
    normed_ND = torch.empty_like(branch_ND)
    sum_ND = torch.empty_like(x_ND)
    moments_N2 = x_ND.new_empty(frames, 2, dtype=torch.float32)
    _forward_kernel[(triton.cdiv(frames, FORWARD_ROWS),)](
        x_ND, branch_ND, weight_D, bias_D, seeds_2, normed_ND, sum_ND, moments_N2, frames, epsilon,
        **drops(dropout), **_sizes(dim), ROWS=FORWARD_ROWS, **LAUNCH,
    )  # fmt: skip
    return normed_ND, sum_ND, moments_N2


def backward(  # noqa: PLR0917
    grad_ND: Tensor,
    sum_ND: Tensor,
    moments_N2: Tensor,
    weight_D: Tensor,
    seeds_2: Tensor,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of the branch (N, D), of weight and of bias (D,); the branch's is of ``grad``'s type."""
    frames, dim = sum_ND.shape
    x_grad_ND = torch.empty_like(sum_ND)
    branch_grad_ND = torch.empty_like(grad_ND)
    programs = min(PROGRAMS, triton.cdiv(frames, BACKWARD_ROWS))
    parts_2PD = torch.empty(2, programs, dim, dtype=torch.float32, device=grad_ND.device)
    _backward_kernel[(programs,)](
        grad_ND, sum_ND, moments_N2, weight_D, seeds_2, x_grad_ND, branch_grad_ND, *parts_2PD.unbind(), frames,
        **drops(dropout), **_sizes(dim), ROWS=BACKWARD_ROWS, **LAUNCH,
    )  # fmt: skip
    weight_grad_D, bias_grad_D = parts_2PD.sum(1).to(weight_D.dtype).unbind()
    # two of one storage must not leave an operator
    return x_grad_ND, branch_grad_ND, weight_grad_D, bias_grad_D.clone()


def _sizes(dim: int) -> dict[str, int]:
    return {"DIM": dim, "BLOCK_D": triton.next_power_of_2(dim)}


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
    epsilon: tl.tensor,
    threshold: tl.tensor,
    gain: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    DROPS: tl.constexpr,
) -> None:
    frame = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    real = (d < DIM)[None, :]
    inside = real & (frame < frames)[:, None]
    place = frame[:, None] * DIM + d[None, :]
    own = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
    total = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    total += kept(own, seeds, place, threshold, gain, DROPS)
    rounded = total.to(sums.dtype.element_ty)
    tl.store(sums + place, rounded, mask=inside)
    total = tl.where(real, rounded.to(tl.float32), 0.0)
    mean = tl.sum(total, 1) / DIM
    centred = tl.where(real, total - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / DIM + epsilon)
    scale = tl.load(weight + d, mask=d < DIM, other=0.0).to(tl.float32)
    shift = tl.load(bias + d, mask=d < DIM, other=0.0).to(tl.float32)
    out = centred * inverse[:, None] * scale[None, :] + shift[None, :]
    tl.store(normed + place, out.to(normed.dtype.element_ty), mask=inside)
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
    scale_parts: tl.tensor,
    shift_parts: tl.tensor,
    frames: tl.tensor,
    threshold: tl.tensor,
    gain: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    DROPS: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    d = tl.arange(0, BLOCK_D)
    real = (d < DIM)[None, :]
    scale = tl.load(weight + d, mask=d < DIM, other=0.0).to(tl.float32)
    scale_grad = tl.zeros((BLOCK_D,), dtype=tl.float32)
    shift_grad = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for turn in range(tl.cdiv(tl.cdiv(frames, ROWS), tl.num_programs(0))):
        frame = (program + turn * tl.num_programs(0)) * ROWS + tl.arange(0, ROWS)
        there = frame < frames
        inside = real & there[:, None]
        place = frame[:, None] * DIM + d[None, :]
        arrived = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        total = tl.load(sums + place, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(moments + frame * 2, mask=there, other=0.0)
        inverse = tl.load(moments + frame * 2 + 1, mask=there, other=0.0)
        normed = tl.where(real, (total - mean[:, None]) * inverse[:, None], 0.0)
        scale_grad += tl.sum(arrived * normed, 0)
        shift_grad += tl.sum(arrived, 0)
        inner = arrived * scale[None, :]
        # what changes a frame's mean or its deviation is taken away by the norm
        level = tl.sum(inner, 1) / DIM
        spread = tl.sum(inner * normed, 1) / DIM
        along = (inner - level[:, None] - normed * spread[:, None]) * inverse[:, None]
        tl.store(x_grad + place, along.to(x_grad.dtype.element_ty), mask=inside)
        own = kept(along, seeds, place, threshold, gain, DROPS)
        tl.store(branch_grad + place, own.to(branch_grad.dtype.element_ty), mask=inside)
    tl.store(scale_parts + program * DIM + d, scale_grad, mask=d < DIM)
    tl.store(shift_parts + program * DIM + d, shift_grad, mask=d < DIM)
