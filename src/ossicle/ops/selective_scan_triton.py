# ty: ignore[invalid-argument-type]  kernels are compiled from their text, for which types are those on the device
"""The recurrence of selective state spaces on a GPU: one Triton kernel there, one back, each over all frames.

A program has the states of some channels of one row in its registers and goes through time alone. On the way back it
writes down the states of a segment, which it makes again from the one before it, and reads them from the last on.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossicle.ops.selective_scan_run import SEGMENT, Inputs, Run

BLOCK_E: Final = 32
"""Channels of a program."""
LAUNCH: Final = {"num_warps": 1}
"""A program is one warp: the sums over channels and states of each frame then wait for no other."""


def forward(inputs: Inputs) -> Run:
    """What ``ossicle.ops.selective_scan`` asks for on the way there."""
    run = Run.empty(inputs)
    if inputs.x_BTE.numel():
        _forward_kernel[_grid(inputs)](*inputs, *run, inputs.x_BTE.shape[1], **_sizes(inputs), **LAUNCH)
    return run


def backward(grad_BTE: Tensor, inputs: Inputs, starts_BSNE: Tensor) -> Inputs:
    """Gradients of the inputs."""
    x_BTE, _, rates_EN, enter_BTN, _ = inputs
    blocks, rows = _grid(inputs)
    sizes = _sizes(inputs)
    grads = torch.empty_like(x_BTE), torch.empty_like(x_BTE)
    # What is summed over channels has a part for each block of them, what is summed over frames one for each row.
    rates_parts_BEN = x_BTE.new_zeros(rows, *rates_EN.shape)
    parts_2CBTN = x_BTE.new_empty(2, blocks, *enter_BTN.shape)
    states = x_BTE.new_empty(blocks * rows, SEGMENT, BLOCK_E, sizes["BLOCK_N"])
    if x_BTE.numel():
        written = (states, *grads, rates_parts_BEN, *parts_2CBTN.unbind())
        _backward_kernel[blocks, rows](grad_BTE, *inputs, starts_BSNE, *written, x_BTE.shape[1], **sizes, **LAUNCH)
    return Inputs(*grads, rates_parts_BEN.sum(0), *(parts_CBTN.sum(0) for parts_CBTN in parts_2CBTN))


def _grid(inputs: Inputs) -> tuple[int, int]:
    """Blocks of channels, and rows."""
    return triton.cdiv(inputs.x_BTE.shape[2], BLOCK_E), inputs.x_BTE.shape[0]


def _sizes(inputs: Inputs) -> dict[str, int]:
    channels, states = inputs.rates_EN.shape
    block = triton.next_power_of_2(states)
    return {"CHANNELS": channels, "STATES": states, "BLOCK_E": BLOCK_E, "BLOCK_N": block, "SEGMENT": SEGMENT}


@triton.jit
def _arriving(  # noqa: PLR0917
    x: tl.tensor,
    step: tl.tensor,
    enter: tl.tensor,
    frame: tl.tensor,
    e: tl.tensor,
    n: tl.tensor,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """A frame's channels, their steps, and how it enters the states."""
    own = tl.load(x + frame * CHANNELS + e, mask=e < CHANNELS, other=0.0)
    delta = tl.load(step + frame * CHANNELS + e, mask=e < CHANNELS, other=0.0)
    return own, delta, tl.load(enter + frame * STATES + n, mask=n < STATES, other=0.0)


@triton.jit
def _forward_kernel(  # noqa: PLR0917
    x: tl.tensor,
    step: tl.tensor,
    rates: tl.tensor,
    enter: tl.tensor,
    leave: tl.tensor,
    said: tl.tensor,
    starts: tl.tensor,
    frames: tl.tensor,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEGMENT: tl.constexpr,
) -> None:
    row = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    inside = (e < CHANNELS)[:, None] & (n < STATES)[None, :]
    rate = tl.load(rates + e[:, None] * STATES + n[None, :], mask=inside, other=0.0)
    state = tl.zeros((BLOCK_E, BLOCK_N), dtype=tl.float32)
    segments = tl.cdiv(frames, SEGMENT)
    for s in range(segments):
        start = ((row * segments + s) * STATES + n[None, :]) * CHANNELS + e[:, None]
        tl.store(starts + start, state, mask=inside)
        for t in range(s * SEGMENT, tl.minimum(frames, (s + 1) * SEGMENT)):
            place = (row * frames + t) * CHANNELS + e
            own, delta, entering = _arriving(x, step, enter, row * frames + t, e, n, CHANNELS, STATES)
            leaving = tl.load(leave + (row * frames + t) * STATES + n, mask=n < STATES, other=0.0)
            state = tl.exp(delta[:, None] * rate) * state + (delta * own)[:, None] * entering[None, :]
            tl.store(said + place, tl.sum(state * leaving[None, :], 1), mask=e < CHANNELS)


@triton.jit
def _backward_kernel(  # noqa: PLR0917
    grad: tl.tensor,
    x: tl.tensor,
    step: tl.tensor,
    rates: tl.tensor,
    enter: tl.tensor,
    leave: tl.tensor,
    starts: tl.tensor,
    states: tl.tensor,
    x_grad: tl.tensor,
    step_grad: tl.tensor,
    rates_parts: tl.tensor,
    enter_parts: tl.tensor,
    leave_parts: tl.tensor,
    frames: tl.tensor,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEGMENT: tl.constexpr,
) -> None:
    row = tl.program_id(1).to(tl.int64)
    program = tl.program_id(0) * tl.num_programs(1) + row
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    inside = (e < CHANNELS)[:, None] & (n < STATES)[None, :]
    of_rates = e[:, None] * STATES + n[None, :]
    rate = tl.load(rates + of_rates, mask=inside, other=0.0)
    written = states + program * (SEGMENT * BLOCK_E * BLOCK_N) + tl.arange(0, BLOCK_E)[:, None] * BLOCK_N + n[None, :]
    carried, rate_grad = tl.zeros((BLOCK_E, BLOCK_N), dtype=tl.float32), tl.zeros((BLOCK_E, BLOCK_N), dtype=tl.float32)
    segments = tl.cdiv(frames, SEGMENT)
    for s in range(segments - 1, -1, -1):
        first, last = s * SEGMENT, tl.minimum(frames, (s + 1) * SEGMENT) - 1
        start = starts + ((row * segments + s) * STATES + n[None, :]) * CHANNELS + e[:, None]
        state = tl.load(start, mask=inside, other=0.0)
        for t in range(first, last + 1):
            tl.store(written + (t - first) * (BLOCK_E * BLOCK_N), state)
            own, delta, entering = _arriving(x, step, enter, row * frames + t, e, n, CHANNELS, STATES)
            state = tl.exp(delta[:, None] * rate) * state + (delta * own)[:, None] * entering[None, :]
        tl.debug_barrier()
        for t in range(last, first - 1, -1):
            place = (row * frames + t) * CHANNELS + e
            own, delta, entering = _arriving(x, step, enter, row * frames + t, e, n, CHANNELS, STATES)
            arrived = tl.load(grad + place, mask=e < CHANNELS, other=0.0)
            leaving = tl.load(leave + (row * frames + t) * STATES + n, mask=n < STATES, other=0.0)
            before = tl.load(written + (t - first) * (BLOCK_E * BLOCK_N))
            kept = tl.exp(delta[:, None] * rate)
            after = kept * before + (delta * own)[:, None] * entering[None, :]
            total = arrived[:, None] * leaving[None, :] + carried
            carried = total * kept
            changed = carried * before
            rate_grad += changed * delta[:, None]
            from_x = tl.sum(total * entering[None, :], 1)
            tl.store(x_grad + place, from_x * delta, mask=e < CHANNELS)
            tl.store(step_grad + place, from_x * own + tl.sum(changed * rate, 1), mask=e < CHANNELS)
            of_part = (program * frames + t) * STATES + n
            tl.store(enter_parts + of_part, tl.sum(total * (delta * own)[:, None], 0), mask=n < STATES)
            tl.store(leave_parts + of_part, tl.sum(arrived[:, None] * after, 0), mask=n < STATES)
        tl.debug_barrier()
    tl.store(rates_parts + row * (CHANNELS * STATES) + of_rates, rate_grad, mask=inside)
