# ty: ignore[invalid-argument-type]  kernels are compiled from their text, for which types are those on the device
"""The light gated recurrence on a GPU: one Triton kernel there, one back, each over all frames.

A program keeps some rows of one direction and goes through time alone, so that nothing waits for other programs; the
recurrent weights stay in the second-level cache. States pass from frame to frame through the output itself, with a
barrier of the program's own threads between.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossicle.ops.recurrence_loop import Run

BLOCK_ROWS: Final = 16
"""Rows of a program: the fewest that a tensor core takes."""


def forward(gates_RBTW: Tensor, recurrent_RWU: Tensor, epsilon: float | None) -> Run:
    """What ``ossicle.ops.recurrence_loop.forward`` gives."""
    run = Run.empty(gates_RBTW, epsilon)
    directions, rows, frames, units = run.states_RBTU.shape
    _forward_kernel[(directions, triton.cdiv(rows, BLOCK_ROWS))](
        gates_RBTW,
        recurrent_RWU,
        *run,
        rows,
        frames,
        0.0 if epsilon is None else epsilon,
        UNITS=units,
        NORMALISED=epsilon is not None,
        **_tiles(units),
    )
    return run


def backward(grad_RBTU: Tensor, run: Run, recurrent_RWU: Tensor, epsilon: float | None) -> tuple[Tensor, Tensor]:
    """What ``ossicle.ops.recurrence_loop.backward`` gives."""
    directions, rows, frames, units = grad_RBTU.shape
    grad_gates_RBTW = torch.empty_like(run.active_RBTW)
    grad_products_RBTW = grad_gates_RBTW if epsilon is None else torch.empty_like(run.active_RBTW)
    carry_RBU = grad_RBTU.new_zeros(directions, rows, units)
    _backward_kernel[(directions, triton.cdiv(rows, BLOCK_ROWS))](
        grad_RBTU,
        *run,
        recurrent_RWU,
        carry_RBU,
        grad_gates_RBTW,
        grad_products_RBTW,
        rows,
        frames,
        UNITS=units,
        NORMALISED=epsilon is not None,
        **_tiles(units),
    )
    return grad_gates_RBTW, grad_products_RBTW


def _tiles(units: int) -> dict[str, int | str]:
    """Sizes of the tiles, and TF32 products where the user lets torch's own take them."""
    block = max(16, min(64, triton.next_power_of_2(units)))
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return {"BLOCK_B": BLOCK_ROWS, "BLOCK_U": block, "BLOCK_K": block, "PRECISION": precision, "num_warps": 8}


@triton.jit
def _product(  # noqa: PLR0917
    left: tl.tensor,
    at_B: tl.tensor,
    there_B: tl.tensor,
    weights: tl.tensor,
    column_stride: tl.tensor,
    depth_stride: tl.tensor,
    u: tl.tensor,
    real_U: tl.tensor,
    DEPTH: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Rows of ``left`` (depth DEPTH) times some columns of a matrix: (BLOCK_B, BLOCK_U)."""
    total = tl.zeros((BLOCK_B, BLOCK_U), dtype=tl.float32)
    for first in range(0, DEPTH, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        real_K = k < DEPTH
        x = tl.load(left + at_B[:, None] * DEPTH + k[None, :], mask=there_B[:, None] & real_K[None, :], other=0.0)
        place = u[None, :] * column_stride + k[:, None] * depth_stride
        w = tl.load(weights + place, mask=real_K[:, None] & real_U[None, :], other=0.0)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    return total


@triton.jit
def _merge(  # noqa: PLR0917
    mean_B: tl.tensor,
    squares_B: tl.tensor,
    z: tl.tensor,
    c: tl.tensor,
    real_U: tl.tensor,
    seen: tl.tensor,
    UNITS: tl.constexpr,
    BLOCK_U: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Mean and squared deviations of what was seen and of two tiles more: no difference of large sums is taken."""
    count = tl.minimum(2.0 * UNITS - seen, 2.0 * BLOCK_U)
    tile_mean_B = (tl.sum(z, 1) + tl.sum(c, 1)) / count
    z_off = tl.where(real_U[None, :], z - tile_mean_B[:, None], 0.0)
    c_off = tl.where(real_U[None, :], c - tile_mean_B[:, None], 0.0)
    apart_B = tile_mean_B - mean_B
    share = count / (count + seen)
    squares_B += tl.sum(z_off * z_off + c_off * c_off, 1) + apart_B * apart_B * seen * share
    return mean_B + apart_B * share, squares_B


@triton.jit
def _activate(  # noqa: PLR0917
    gates: tl.tensor,
    states: tl.tensor,
    active: tl.tensor,
    z: tl.tensor,
    c: tl.tensor,
    at_B: tl.tensor,
    past_B: tl.tensor,
    u: tl.tensor,
    mask: tl.tensor,
    UNITS: tl.constexpr,
) -> None:
    """The new state of some units from their recurrent products."""
    here = at_B[:, None] * (2 * UNITS) + u[None, :]
    update = tl.sigmoid(z + tl.load(gates + here, mask=mask, other=0.0))
    total = c + tl.load(gates + here + UNITS, mask=mask, other=0.0)
    candidate = tl.where(total < 0.0, 0.0, total)
    place = at_B[:, None] * UNITS + u[None, :]
    before = tl.load(states + place - UNITS, mask=mask & past_B[:, None], other=0.0)
    tl.store(active + here, update, mask=mask)
    tl.store(active + here + UNITS, candidate, mask=mask)
    tl.store(states + place, update * before + (1.0 - update) * candidate, mask=mask)


@triton.jit
def _standardise(  # noqa: PLR0917
    gates: tl.tensor,
    states: tl.tensor,
    active: tl.tensor,
    normal: tl.tensor,
    mean_B: tl.tensor,
    scale_B: tl.tensor,
    at_B: tl.tensor,
    past_B: tl.tensor,
    real_B: tl.tensor,
    UNITS: tl.constexpr,
    BLOCK_U: tl.constexpr,
) -> None:
    """The layer norm of a frame's products, in their place, and the new state from it."""
    for first in range(0, UNITS, BLOCK_U):
        u = first + tl.arange(0, BLOCK_U)
        mask = real_B[:, None] & (u < UNITS)[None, :]
        here = at_B[:, None] * (2 * UNITS) + u[None, :]
        z = (tl.load(normal + here, mask=mask, other=0.0) - mean_B[:, None]) * scale_B[:, None]
        c = (tl.load(normal + here + UNITS, mask=mask, other=0.0) - mean_B[:, None]) * scale_B[:, None]
        tl.store(normal + here, z, mask=mask)
        tl.store(normal + here + UNITS, c, mask=mask)
        _activate(gates, states, active, z, c, at_B, past_B, u, mask, UNITS)


@triton.jit
def _forward_kernel(  # noqa: PLR0917
    gates: tl.tensor,
    weights: tl.tensor,
    states: tl.tensor,
    active: tl.tensor,
    normal: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    frames: tl.tensor,
    epsilon: tl.tensor,
    UNITS: tl.constexpr,
    NORMALISED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    direction = tl.program_id(0)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    real_B = b < rows
    start_B = (direction * rows + b).to(tl.int64) * frames
    update_weights = weights + direction * 2 * UNITS * UNITS
    for t in range(frames):
        at_B = start_B + t
        past_B = real_B & (t > 0)
        mean_B = tl.zeros((BLOCK_B,), dtype=tl.float32)
        squares_B = tl.zeros((BLOCK_B,), dtype=tl.float32)
        for first in range(0, UNITS, BLOCK_U):
            u = first + tl.arange(0, BLOCK_U)
            real_U = u < UNITS
            mask = real_B[:, None] & real_U[None, :]
            z = _product(
                states, at_B - 1, past_B, update_weights, UNITS, 1, u, real_U,
                UNITS, BLOCK_B, BLOCK_U, BLOCK_K, PRECISION,
            )  # fmt: skip
            c = _product(
                states, at_B - 1, past_B, update_weights + UNITS * UNITS, UNITS, 1, u, real_U,
                UNITS, BLOCK_B, BLOCK_U, BLOCK_K, PRECISION,
            )  # fmt: skip
            if NORMALISED:
                here = at_B[:, None] * (2 * UNITS) + u[None, :]
                tl.store(normal + here, z, mask=mask)
                tl.store(normal + here + UNITS, c, mask=mask)
                mean_B, squares_B = _merge(mean_B, squares_B, z, c, real_U, 2.0 * first, UNITS, BLOCK_U)
            else:
                _activate(gates, states, active, z, c, at_B, past_B, u, mask, UNITS)
        if NORMALISED:
            scale_B = 1.0 / tl.sqrt(squares_B / (2.0 * UNITS) + epsilon)
            tl.store(scales + at_B, scale_B, mask=real_B)
            tl.debug_barrier()
            _standardise(gates, states, active, normal, mean_B, scale_B, at_B, past_B, real_B, UNITS, BLOCK_U)
        tl.debug_barrier()


@triton.jit
def _activate_backward(  # noqa: PLR0917
    grad_states: tl.tensor,
    states: tl.tensor,
    active: tl.tensor,
    carried: tl.tensor,
    at_B: tl.tensor,
    past_B: tl.tensor,
    u: tl.tensor,
    mask: tl.tensor,
    UNITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Gradients of some units' gates and candidates; what goes straight to the state before is put in ``carried``."""
    here = at_B[:, None] * (2 * UNITS) + u[None, :]
    place = at_B[:, None] * UNITS + u[None, :]
    update = tl.load(active + here, mask=mask, other=0.0)
    candidate = tl.load(active + here + UNITS, mask=mask, other=0.0)
    before = tl.load(states + place - UNITS, mask=mask & past_B[:, None], other=0.0)
    grad = tl.load(grad_states + place, mask=mask, other=0.0) + tl.load(carried, mask=mask, other=0.0)
    tl.store(carried, grad * update, mask=mask)
    rest = grad * (1.0 - update)
    return (before - candidate) * update * rest, tl.where(candidate > 0.0, rest, 0.0)


@triton.jit
def _standardise_backward(  # noqa: PLR0917
    grad_gates: tl.tensor,
    normal: tl.tensor,
    grad_products: tl.tensor,
    scale_B: tl.tensor,
    mean_B: tl.tensor,
    along_B: tl.tensor,
    at_B: tl.tensor,
    real_B: tl.tensor,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Gradients of a frame's products from those of their layer norm."""
    for first in range(0, WIDE, BLOCK):
        w = first + tl.arange(0, BLOCK)
        mask = real_B[:, None] & (w < WIDE)[None, :]
        here = at_B[:, None] * WIDE + w[None, :]
        along = tl.load(normal + here, mask=mask, other=0.0) * along_B[:, None]
        off = tl.load(grad_gates + here, mask=mask, other=0.0) - mean_B[:, None] - along
        tl.store(grad_products + here, scale_B[:, None] * off, mask=mask)


@triton.jit
def _carry(  # noqa: PLR0917
    grad_products: tl.tensor,
    carry: tl.tensor,
    weights: tl.tensor,
    row_B: tl.tensor,
    at_B: tl.tensor,
    past_B: tl.tensor,
    real_B: tl.tensor,
    UNITS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Add to the gradient of the state before what comes through the recurrent products."""
    for first in range(0, UNITS, BLOCK_U):
        u = first + tl.arange(0, BLOCK_U)
        real_U = u < UNITS
        mask = real_B[:, None] & real_U[None, :]
        carried = carry + row_B[:, None] * UNITS + u[None, :]
        back = _product(
            grad_products, at_B, past_B, weights, 1, UNITS, u, real_U,
            2 * UNITS, BLOCK_B, BLOCK_U, BLOCK_K, PRECISION,
        )  # fmt: skip
        tl.store(carried, tl.load(carried, mask=mask, other=0.0) + back, mask=mask)


@triton.jit
def _backward_kernel(  # noqa: PLR0917
    grad_states: tl.tensor,
    states: tl.tensor,
    active: tl.tensor,
    normal: tl.tensor,
    scales: tl.tensor,
    weights: tl.tensor,
    carry: tl.tensor,
    grad_gates: tl.tensor,
    grad_products: tl.tensor,
    rows: tl.tensor,
    frames: tl.tensor,
    UNITS: tl.constexpr,
    NORMALISED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    direction = tl.program_id(0)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    real_B = b < rows
    row_B = (direction * rows + b).to(tl.int64)
    for step in range(frames):
        t = frames - 1 - step
        at_B = row_B * frames + t
        past_B = real_B & (t > 0)
        sum_B = tl.zeros((BLOCK_B,), dtype=tl.float32)
        along_B = tl.zeros((BLOCK_B,), dtype=tl.float32)
        for first in range(0, UNITS, BLOCK_U):
            u = first + tl.arange(0, BLOCK_U)
            mask = real_B[:, None] & (u < UNITS)[None, :]
            here = at_B[:, None] * (2 * UNITS) + u[None, :]
            carried = carry + row_B[:, None] * UNITS + u[None, :]
            z, c = _activate_backward(grad_states, states, active, carried, at_B, past_B, u, mask, UNITS)
            tl.store(grad_gates + here, z, mask=mask)
            tl.store(grad_gates + here + UNITS, c, mask=mask)
            if NORMALISED:
                sum_B += tl.sum(z + c, 1)
                z_normal = tl.load(normal + here, mask=mask, other=0.0)
                c_normal = tl.load(normal + here + UNITS, mask=mask, other=0.0)
                along_B += tl.sum(z * z_normal + c * c_normal, 1)
        tl.debug_barrier()
        if NORMALISED:
            scale_B = tl.load(scales + at_B, mask=real_B, other=0.0)
            _standardise_backward(
                grad_gates, normal, grad_products, scale_B, sum_B / (2 * UNITS), along_B / (2 * UNITS), at_B, real_B,
                2 * UNITS, BLOCK_U,
            )  # fmt: skip
            tl.debug_barrier()
        _carry(
            grad_products, carry, weights + direction * 2 * UNITS * UNITS, row_B, at_B, past_B, real_B,
            UNITS, BLOCK_B, BLOCK_U, BLOCK_K, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()
