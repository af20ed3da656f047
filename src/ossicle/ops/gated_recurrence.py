"""torch's GRU and LSTM as a function of their weights: cuDNN's on a GPU, and one node under torch.compile."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.flop_counter import register_flop_formula
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float

GATES: Final = {"GRU": 3, "LSTM": 4}
"""Kinds and how many matrices each has: an LSTM's three gates and its cell, a GRU's two gates and its candidate."""
WEIGHTS: Final = 4
"""Tensors of one direction: input and recurrent weights, input and recurrent biases."""

SEGMENT: Final = 256
"""Frames of a GRU that a CPU takes there and back at once: what torch keeps of them stays in its caches."""
LONG: Final = 1024
"""Frames beyond which a row is taken in segments. Running them again makes 1,000 frames a third slower, 2,000 not."""


def gated_recurrence(kind: str, x_BTD: Float[Tensor, "B T D"], weights: Sequence[Tensor]) -> Float[Tensor, "B T W"]:
    """States of one recurrent layer from zero states, in torch's equations of ``nn.GRU`` or ``nn.LSTM``.

    Left to itself, torch.compile unrolls these layers on a CPU, an operation for every frame, and refuses the modules
    in a whole graph; there and on the meta device they run as one operation that knows its shapes and its cost. It
    keeps no graph between its passes: its way back runs the way there again. They compute in float32 at least.

    On a CPU torch's GRU keeps a dozen tensors of each frame, and takes longer for a frame the more there are: 0.36 ms
    for each of 250 of width 256, 0.68 for each of 8,000. Long rows are therefore taken in segments, of which only the
    states between are kept; the way back runs each segment again.

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
    with torch.autocast(x_BTD.device.type, enabled=False):
        if kind != "GRU" or x_BTD.device.type != "cpu" or x_BTD.shape[1] <= LONG or not torch.is_grad_enabled():
            return _layer(kind, x_BTD, _zeros(kind, x_BTD, weights), weights)[0]
        there_BTU = _Segmented.apply(x_BTD, *weights[:WEIGHTS])
        if len(weights) == WEIGHTS:
            return there_BTU
        return torch.cat([there_BTU, _Segmented.apply(x_BTD.flip(1), *weights[WEIGHTS:]).flip(1)], -1)


def _zeros(kind: str, x_BTD: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """The state before the first frame: a GRU's, or an LSTM's and its cell's."""
    zeros_RBU = x_BTD.new_zeros(len(weights) // WEIGHTS, x_BTD.shape[0], weights[1].shape[-1])
    return [zeros_RBU] * (1 if kind == "GRU" else 2)


def _layer(kind: str, x_BTD: Tensor, state: list[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The states of all frames, and the last one."""
    rest = (True, 1, 0.0, torch.is_grad_enabled(), len(weights) > WEIGHTS, True)
    if kind == "GRU":
        return torch.gru(x_BTD, state[0], list(weights), *rest)
    return torch.lstm(x_BTD, state, list(weights), *rest)


def _recording() -> AbstractContextManager[None]:
    """A stretch inside an operation that autograd records, as it does outside of operations."""
    # Torch has no public name for it; all that is left out inside an operation is what autograd would do.
    kept, left_out = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()  # noqa: SLF001
    autograd = torch._C._dispatch_keyset_full() - torch._C._after_autograd_keyset  # noqa: SLF001
    return torch._C._ForceDispatchKeyGuard(kept, left_out - autograd)  # noqa: SLF001


class _Segmented(torch.autograd.Function):
    """One direction of a GRU, a segment of frames at a time."""

    @staticmethod
    @override
    def forward(ctx: FunctionCtx, x_BTD: Tensor, *weights: Tensor) -> Tensor:
        (state_1BU,) = _zeros("GRU", x_BTD, weights)
        states, starts = [], []
        for part_BSD in x_BTD.split(SEGMENT, 1):
            starts.append(state_1BU)
            said_BSU, state_1BU = _layer("GRU", part_BSD, [state_1BU], weights)
            states.append(said_BSU)
        ctx.save_for_backward(x_BTD, *weights, *starts)
        return torch.cat(states, 1)

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, ...]:
        x_BTD, *rest = ctx.saved_tensors  # ty: ignore[missing-attribute]
        weights, starts = rest[:WEIGHTS], rest[WEIGHTS:]
        grad_x_BTD, grad_state_1BU = torch.empty_like(x_BTD), torch.zeros_like(starts[0])
        grad_weights = [torch.zeros_like(weight) for weight in weights]
        segments = zip(*(x.split(SEGMENT, 1) for x in (x_BTD, grads[0], grad_x_BTD)), starts, strict=True)
        for part_BSD, grad_BSU, onward_BSD, start_1BU in reversed(list(segments)):
            with torch.enable_grad(), _recording(), torch.autocast(x_BTD.device.type, enabled=False):
                leaves = [tensor.detach().requires_grad_() for tensor in (part_BSD, start_1BU, *weights)]
                said = _layer("GRU", leaves[0], [leaves[1]], leaves[2:])
            grad_BSD, grad_state_1BU, *found = torch.autograd.grad(said, leaves, (grad_BSU, grad_state_1BU))
            onward_BSD.copy_(grad_BSD)
            for total, grad in zip(grad_weights, found, strict=True):
                total.add_(grad)
        return grad_x_BTD, *grad_weights


@torch.library.custom_op("ossicle::gated_recurrence", mutates_args=())
def _forward(x_BTD: Tensor, weights: Sequence[Tensor], kind: str) -> Tensor:
    return _run(x_BTD, weights, kind).contiguous()


@_forward.register_fake
def _forward_shapes(x_BTD: Tensor, weights: Sequence[Tensor], kind: str) -> Tensor:  # noqa: ARG001
    directions = len(weights) // WEIGHTS
    return x_BTD.new_empty(*x_BTD.shape[:2], directions * weights[1].shape[-1])


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
