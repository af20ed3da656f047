"""torch's GRU and LSTM as a function of their weights: cuDNN's on a GPU, and one node under torch.compile."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float

GATES: Final = {"GRU": 3, "LSTM": 4}
"""Kinds and how many matrices each has: an LSTM's three gates and its cell, a GRU's two gates and its candidate."""
WEIGHTS: Final = 4
"""Tensors of one direction: input and recurrent weights, input and recurrent biases."""


def gated_recurrence(kind: str, x_BTD: Float[Tensor, "B T D"], weights: Sequence[Tensor]) -> Float[Tensor, "B T W"]:
    """States of one recurrent layer from zero states, in torch's equations of ``nn.GRU`` or ``nn.LSTM``.

    Left to itself, torch.compile unrolls these layers on a CPU, an operation for every frame, and refuses the modules
    in a whole graph; there and on the meta device they run as one operation that knows its shapes and its cost. It
    keeps no graph between its passes: its way back runs the way there again. They compute in float32 at least.

    Args:
        kind: ``GRU`` or ``LSTM``.
        x_BTD: Frames, shape (B, T, D).
        weights: Input weights, recurrent weights, input biases and recurrent biases of the first direction, then, if
            there are two, of the second.

    Returns:
        States, the directions' end to end, shape (B, T, directions x units).

    Raises:
        ConfigError: The kind is unknown.
    """
    if kind not in GATES:
        raise ConfigError(f"there is no gated recurrence {kind!r}", f"name one of: {', '.join(GATES)}")
    dtype = torch.promote_types(x_BTD.dtype, torch.float32)
    x_BTD = x_BTD.to(dtype)
    weights = [weight.to(dtype) for weight in weights]
    if torch.compiler.is_compiling() or x_BTD.is_meta:
        return _forward(x_BTD, weights, kind)
    return _run(x_BTD, weights, kind)


def _run(x_BTD: Tensor, weights: Sequence[Tensor], kind: str) -> Tensor:
    """The layer as torch computes it."""
    directions = len(weights) // WEIGHTS
    zeros_RBU = x_BTD.new_zeros(directions, x_BTD.shape[0], weights[1].shape[-1])
    rest = (True, 1, 0.0, torch.is_grad_enabled(), directions > 1, True)
    with torch.autocast(x_BTD.device.type, enabled=False):
        if kind == "GRU":
            return torch.gru(x_BTD, zeros_RBU, list(weights), *rest)[0]
        return torch.lstm(x_BTD, [zeros_RBU, zeros_RBU], list(weights), *rest)[0]


@torch.library.custom_op("ossicle::gated_recurrence", mutates_args=())
def _forward(x_BTD: Tensor, weights: Sequence[Tensor], kind: str) -> Tensor:
    return _run(x_BTD, weights, kind).contiguous()


@_forward.register_fake
def _forward_shapes(x_BTD: Tensor, weights: Sequence[Tensor], kind: str) -> Tensor:  # noqa: ARG001
    directions = len(weights) // WEIGHTS
    return x_BTD.new_empty(*x_BTD.shape[:2], directions * weights[1].shape[-1])


def _recording() -> AbstractContextManager[None]:
    """A stretch inside an operation that autograd records, as it does outside of operations."""
    # Torch has no public name for it; all that is left out inside an operation is what autograd would do.
    kept, left_out = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()  # noqa: SLF001
    autograd = torch._C._dispatch_keyset_full() - torch._C._after_autograd_keyset  # noqa: SLF001
    return torch._C._ForceDispatchKeyGuard(kept, left_out - autograd)  # noqa: SLF001


@torch.library.custom_op("ossicle::gated_recurrence_backward", mutates_args=())
def _backward(grad_BTW: Tensor, x_BTD: Tensor, weights: Sequence[Tensor], kind: str) -> list[Tensor]:
    with torch.enable_grad(), _recording():
        inputs = [tensor.detach().requires_grad_() for tensor in (x_BTD, *weights)]
        states_BTW = _run(inputs[0], inputs[1:], kind)
    return [grad.contiguous() for grad in torch.autograd.grad(states_BTW, inputs, grad_BTW)]


@_backward.register_fake
def _backward_shapes(
    grad_BTW: Tensor,  # noqa: ARG001
    x_BTD: Tensor,
    weights: Sequence[Tensor],
    kind: str,  # noqa: ARG001
) -> list[Tensor]:
    return [x_BTD.new_empty(tensor.shape) for tensor in (x_BTD, *weights)]


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, list[Tensor], str], output: Tensor) -> None:  # noqa: ARG001
    """Keep what the way back needs."""
    x_BTD, weights, kind = inputs
    ctx.save_for_backward(x_BTD, *weights)
    setattr(ctx, "kind", kind)  # noqa: B010


def _gradient(ctx: torch.autograd.function.FunctionCtx, grad_BTW: Tensor) -> tuple[Tensor, list[Tensor], None]:
    """Gradients of the frames and of the weights."""
    saved = cast("tuple[Tensor, ...]", getattr(ctx, "saved_tensors"))  # noqa: B009
    grad_BTD, *grad_weights = _backward(grad_BTW, saved[0], saved[1:], getattr(ctx, "kind"))  # noqa: B009
    return grad_BTD, grad_weights, None


_forward.register_autograd(_gradient, setup_context=_save)


@register_flop_formula(torch.ops.ossicle.gated_recurrence)
def _forward_flops(
    x_shape: tuple[int, ...], weights_shapes: Sequence[tuple[int, ...]], *_: object, **__: object
) -> int:
    """Two operations for each multiply-accumulate of the input and recurrent products of every frame."""
    rows, frames, _dim = x_shape
    return 2 * rows * frames * sum(shape[0] * shape[1] for shape in weights_shapes if len(shape) > 1)


@register_flop_formula(torch.ops.ossicle.gated_recurrence_backward)
def _backward_flops(
    grad_shape: tuple[int, ...],  # noqa: ARG001
    x_shape: tuple[int, ...],
    weights_shapes: Sequence[tuple[int, ...]],
    *_: object,
    **__: object,
) -> int:
    """The way there again, and twice as much on the way back."""
    return 3 * _forward_flops(x_shape, weights_shapes)
