"""The recurrence of light gated recurrent units as one operation: torch.compile sees one node, not one a frame.

Letters of this file, beside the legend's: R directions of time, U units of one direction, W = 2 U for both that a unit
computes: of W, the first U are update gates, the last U candidates.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ossicle.core.shapes import Bool, Float
from ossicle.ops import kernel_choice, recurrence_cpu, recurrence_loop
from ossicle.ops.recurrence_loop import Run


def light_gru(
    gates_RBTW: Float[Tensor, "R B T W"], recurrent_RWU: Float[Tensor, "R W U"], epsilon: float | None = None
) -> Float[Tensor, "R B T U"]:
    """States of light gated recurrent units (arXiv 1803.10225, equations 8 to 10), from zero states, frame by frame.

    With p = U h_{t-1}, or its layer norm where ``epsilon`` is given (arXiv 2302.10144, section 3): the update gate
    z = sigmoid(gates_z + p_z), the candidate c = relu(gates_c + p_c), the state h_t = z h_{t-1} + (1 - z) c.
    It runs in float32 at least, whatever autocast says: rounding would add up over frames.

    Args:
        gates_RBTW: What each frame brings, of each direction in its own order of time, shape (R, B, T, 2U).
        recurrent_RWU: Recurrent weights, shape (R, 2U, U).
        epsilon: Added to the variance of the layer norm over a frame's 2U recurrent products; None for no norm.

    Returns:
        States in each direction's order of time, shape (R, B, T, U).
    """
    dtype = torch.promote_types(gates_RBTW.dtype, torch.float32)
    gates_RBTW, recurrent_RWU = gates_RBTW.to(dtype).contiguous(), recurrent_RWU.to(dtype).contiguous()
    return _forward(gates_RBTW, recurrent_RWU, epsilon)[0]


def light_gru_reference(
    gates_RBTW: Float[Tensor, "R B T W"], recurrent_RWU: Float[Tensor, "R W U"], epsilon: float | None = None
) -> Float[Tensor, "R B T U"]:
    """:func:`light_gru` in plain torch, differentiated by autograd: what the kernels are held to."""
    return recurrence_loop.forward(gates_RBTW, recurrent_RWU, epsilon)[0]


def reverse_frames(x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
    """Each row from its own last real frame to its first; what is behind stays. Its own inverse.

    Args:
        x_BTD: Frames, shape (B, T, D).
        valid_BT: True where a frame is real: the first frames of each row. None where every frame is.
    """
    if valid_BT is None:
        return x_BTD.flip(1)
    places_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
    sources_BT = torch.where(valid_BT, valid_BT.sum(1, keepdim=True) - 1 - places_T, places_T)
    return x_BTD.gather(1, sources_BT[..., None].expand_as(x_BTD))


@dataclass(frozen=True, slots=True)
class _Kernel:
    """One way to run the recurrence there and back."""

    forward: Callable[[Tensor, Tensor, float | None], Run]
    backward: Callable[[Tensor, Run, Tensor, float | None], tuple[Tensor, Tensor]]


_LOOP = _Kernel(recurrence_loop.forward, recurrence_loop.backward)


@functools.cache
def _kernel(device: str, dtype: torch.dtype) -> _Kernel:
    """The fastest way on a device, logged when it is first asked for with the reason of a fallback."""
    if not kernel_choice.serves(
        "light gated recurrence", device, dtype, recurrence_cpu.CODE, "a loop over frames in torch"
    ):
        return _LOOP
    if device == "cpu":
        return _Kernel(recurrence_cpu.forward, recurrence_cpu.backward)
    # Only here: triton is slow to import, and CPU runs need none of it.
    from ossicle.ops import recurrence_triton  # noqa: PLC0415

    return _Kernel(recurrence_triton.forward, recurrence_triton.backward)


@torch.library.custom_op("ossicle::light_gru", mutates_args=())
def _forward(gates_RBTW: Tensor, recurrent_RWU: Tensor, epsilon: float | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernel = _kernel(gates_RBTW.device.type, gates_RBTW.dtype)
    with torch.autocast(gates_RBTW.device.type, enabled=False):
        return tuple(kernel.forward(gates_RBTW, recurrent_RWU, epsilon))


@_forward.register_fake
def _forward_shapes(
    gates_RBTW: Tensor,
    recurrent_RWU: Tensor,  # noqa: ARG001
    epsilon: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(Run.empty(gates_RBTW, epsilon))


@torch.library.custom_op("ossicle::light_gru_backward", mutates_args=())
def _backward(
    grad_RBTU: Tensor, run: Sequence[Tensor], recurrent_RWU: Tensor, epsilon: float | None
) -> tuple[Tensor, Tensor]:
    kernel = _kernel(grad_RBTU.device.type, grad_RBTU.dtype)
    with torch.autocast(grad_RBTU.device.type, enabled=False):
        grad_gates_RBTW, of_products_RBTW = kernel.backward(grad_RBTU.contiguous(), Run(*run), recurrent_RWU, epsilon)
        # All frames in one product of matrices, (R, 2U, B T) times (R, B T, U).
        before_RBTU = recurrence_loop.shifted(run[0])
        grad_recurrent_RWU = of_products_RBTW.flatten(1, 2).mT @ before_RBTU.flatten(1, 2)
    return grad_gates_RBTW, grad_recurrent_RWU


@_backward.register_fake
def _backward_shapes(
    grad_RBTU: Tensor,  # noqa: ARG001
    run: Sequence[Tensor],
    recurrent_RWU: Tensor,
    epsilon: float | None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(Run(*run).active_RBTW), torch.empty_like(recurrent_RWU)


def _save(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Tensor, float | None],
    output: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Keep what the way back needs."""
    _, recurrent_RWU, epsilon = inputs
    ctx.save_for_backward(*output, recurrent_RWU)
    ctx.set_materialize_grads(False)
    setattr(ctx, "epsilon", epsilon)  # noqa: B010


def _gradient(
    ctx: torch.autograd.function.FunctionCtx, grad_RBTU: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, Tensor | None, None]:
    """Gradients of the gates and of the recurrent weights."""
    if grad_RBTU is None:
        return None, None, None
    saved = cast("tuple[Tensor, ...]", getattr(ctx, "saved_tensors"))  # noqa: B009
    grad_gates_RBTW, grad_recurrent_RWU = _backward(grad_RBTU, saved[:-1], saved[-1], getattr(ctx, "epsilon"))  # noqa: B009
    return grad_gates_RBTW, grad_recurrent_RWU, None


_forward.register_autograd(_gradient, setup_context=_save)


@register_flop_formula(torch.ops.ossicle.light_gru)
def _forward_flops(gates_shape: tuple[int, ...], *_: object, **__: object) -> int:
    """Two operations for each multiply-accumulate of the recurrent products: R B T times 2U by U."""
    directions, rows, frames, wide = gates_shape
    return directions * rows * frames * wide * wide


@register_flop_formula(torch.ops.ossicle.light_gru_backward)
def _backward_flops(grad_shape: tuple[int, ...], *_: object, **__: object) -> int:
    """The products' way back to the states, and the weights' gradient: twice the way there."""
    directions, rows, frames, units = grad_shape
    return 2 * directions * rows * frames * (2 * units) ** 2
