"""The recurrence of selective state spaces as one operation: torch.compile sees one node, not one a frame."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ossicle.core.shapes import Float
from ossicle.ops import kernel_choice, selective_scan_cpu
from ossicle.ops.associative_scan import selective_scan_by_pairs
from ossicle.ops.selective_scan_run import Inputs, Run


def selective_scan(
    x_BTE: Float[Tensor, "B T E"],
    step_BTE: Float[Tensor, "B T E"],
    rates_EN: Float[Tensor, "E N"],
    enter_BTN: Float[Tensor, "B T N"],
    leave_BTN: Float[Tensor, "B T N"],
) -> Float[Tensor, "B T E"]:
    """What diagonal state spaces say whose maps depend on the frame (arXiv 2312.00752, algorithm 2 and equation 2).

    For each channel and each of its N states, from zero: h_t = exp(step_t rate) h_{t-1} + step_t enter_t x_t, and
    y_t = sum over the states of leave_t h_t. It runs in float32 at least, whatever autocast says: rounding would add up
    over frames. The states of some frames are kept, and those between are made again in the backward pass.

    Args:
        x_BTE: Frames, shape (B, T, E).
        step_BTE: Positive steps in time (Delta), same shape.
        rates_EN: Negative rates (A), shape (E, N).
        enter_BTN: How a frame enters the states (B), shape (B, T, N).
        leave_BTN: How the states leave (C), same shape.

    Returns:
        Shape (B, T, E), in float32 at least.
    """
    dtype = torch.promote_types(x_BTE.dtype, torch.float32)
    inputs = Inputs(*(x.to(dtype) for x in (x_BTE, step_BTE, rates_EN, enter_BTN, leave_BTN)))
    if not _serves(x_BTE.device.type, dtype):
        return selective_scan_by_pairs(*inputs)
    return _forward(*(x.contiguous() for x in inputs))[0]


@dataclass(frozen=True, slots=True)
class _Kernel:
    """One way to run the scan there and back."""

    forward: Callable[[Inputs], Run]
    backward: Callable[[Tensor, Inputs, Tensor], Inputs]


# torch.compile runs this while it traces and keeps the answer: neither the choice nor its log line breaks a graph.
@torch.compiler.assume_constant_result
def _serves(device: str, dtype: torch.dtype) -> bool:
    """Whether a kernel runs on a device; on the meta device, where nothing runs, the operation stands for it."""
    return device == "meta" or _kernel(device, dtype) is not None


@functools.cache
def _kernel(device: str, dtype: torch.dtype) -> _Kernel | None:
    """The kernel of a device, logged when it is first asked for; None, with the reason, where torch has to serve."""
    if not kernel_choice.serves(
        "selective scan", device, dtype, selective_scan_cpu.CODE, "an associative scan in torch"
    ):
        return None
    if device == "cpu":
        return _Kernel(selective_scan_cpu.forward, selective_scan_cpu.backward)
    # Only here: triton is slow to import, and CPU runs need none of it.
    from ossicle.ops import selective_scan_triton  # noqa: PLC0415

    return _Kernel(selective_scan_triton.forward, selective_scan_triton.backward)


@torch.library.custom_op("ossicle::selective_scan", mutates_args=())
def _forward(
    x_BTE: Tensor, step_BTE: Tensor, rates_EN: Tensor, enter_BTN: Tensor, leave_BTN: Tensor
) -> tuple[Tensor, Tensor]:
    kernel = _kernel(x_BTE.device.type, x_BTE.dtype)
    assert kernel is not None
    return tuple(kernel.forward(Inputs(x_BTE, step_BTE, rates_EN, enter_BTN, leave_BTN)))


@_forward.register_fake
def _forward_shapes(
    x_BTE: Tensor, step_BTE: Tensor, rates_EN: Tensor, enter_BTN: Tensor, leave_BTN: Tensor
) -> tuple[Tensor, Tensor]:
    return tuple(Run.empty(Inputs(x_BTE, step_BTE, rates_EN, enter_BTN, leave_BTN)))


@torch.library.custom_op("ossicle::selective_scan_backward", mutates_args=())
def _backward(grad_BTE: Tensor, inputs: Sequence[Tensor], starts_BSNE: Tensor) -> list[Tensor]:
    kernel = _kernel(grad_BTE.device.type, grad_BTE.dtype)
    assert kernel is not None
    return list(kernel.backward(grad_BTE.contiguous(), Inputs(*inputs), starts_BSNE))


@_backward.register_fake
def _backward_shapes(grad_BTE: Tensor, inputs: Sequence[Tensor], starts_BSNE: Tensor) -> list[Tensor]:  # noqa: ARG001
    return [torch.empty_like(x) for x in inputs]


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what the way back needs."""
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)


def _gradient(
    ctx: torch.autograd.function.FunctionCtx, grad_BTE: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of all inputs."""
    *inputs, starts_BSNE = cast("tuple[Tensor, ...]", getattr(ctx, "saved_tensors"))  # noqa: B009
    if grad_BTE is None:
        return (None,) * len(inputs)
    return tuple(_backward(grad_BTE, inputs, starts_BSNE))


_forward.register_autograd(_gradient, setup_context=_save)


@register_flop_formula(torch.ops.ossicle.selective_scan)
def _forward_flops(
    x_shape: tuple[int, ...], _: object, rates_shape: tuple[int, ...], *__: object, **___: object
) -> int:
    """Two operations for each state that is read: states are updated by elementwise work, which is not counted."""
    rows, frames, _channels = x_shape
    return 2 * rows * frames * rates_shape[0] * rates_shape[1]


@register_flop_formula(torch.ops.ossicle.selective_scan_backward)
def _backward_flops(
    grad_shape: tuple[int, ...], inputs_shapes: Sequence[tuple[int, ...]], *_: object, **__: object
) -> int:
    """Those of the states' gradients and of the ways out."""
    return 2 * _forward_flops(grad_shape, None, inputs_shapes[2])
