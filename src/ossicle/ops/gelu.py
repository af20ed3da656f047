"""Bias and GELU as one operation: on a GPU the bias's gradient is summed by the kernel that makes the other's.

In compiled graphs too, where torch.compile would read everything once more for that sum (docs/results/step_gpu.md).
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.core.shapes import Float
from ossicle.ops.triton_kernels import serves


def linear_gelu(
    x: Float[Tensor, "*rest C"], weight_DC: Float[Tensor, "D C"], bias_D: Float[Tensor, " D"]
) -> Float[Tensor, "*rest D"]:
    """``gelu(linear(x, weight, bias))`` (arXiv 1606.08415, the exact GELU).

    Args:
        x: Frames, shape (..., C).
        weight_DC: Weight of :class:`torch.nn.Linear`, shape (D, C).
        bias_D: Its bias, shape (D,).

    Returns:
        Shape (..., D), in autocast's type where that is on.
    """
    if x.device.type != "cuda":
        return functional.gelu(functional.linear(x, weight_DC, bias_D))
    return bias_gelu(functional.linear(x, weight_DC), bias_D)


def bias_gelu(x: Float[Tensor, "*rest D"], bias_D: Float[Tensor, " D"]) -> Float[Tensor, "*rest D"]:
    """``gelu(x + bias)``.

    Args:
        x: Products, shape (..., D).
        bias_D: What is added to each frame, shape (D,).
    """
    if x.device.type != "cuda" or not serves("bias and GELU", (x.dtype,)):
        return functional.gelu(x + bias_D)
    return _forward(x.flatten(0, -2), bias_D).view(x.shape)


@torch.library.custom_op("ossicle::bias_gelu", mutates_args=())
def _forward(x_ND: Tensor, bias_D: Tensor) -> Tensor:
    # Only here: triton is slow to import, and CPU runs need none of it.
    from ossicle.ops import gelu_triton  # noqa: PLC0415

    return gelu_triton.forward(x_ND.contiguous(), bias_D)


@_forward.register_fake
def _forward_shape(x_ND: Tensor, bias_D: Tensor) -> Tensor:  # noqa: ARG001
    return x_ND.new_empty(x_ND.shape)


@torch.library.custom_op("ossicle::bias_gelu_backward", mutates_args=())
def _backward(grad_ND: Tensor, x_ND: Tensor, bias_D: Tensor) -> tuple[Tensor, Tensor]:
    from ossicle.ops import gelu_triton  # noqa: PLC0415

    return gelu_triton.backward(grad_ND.contiguous(), x_ND.contiguous(), bias_D)


@_backward.register_fake
def _backward_shapes(grad_ND: Tensor, x_ND: Tensor, bias_D: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return x_ND.new_empty(x_ND.shape), torch.empty_like(bias_D)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _gradient(ctx: torch.autograd.function.FunctionCtx, grad_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the bias."""
    return _backward(grad_ND, *cast("tuple[Tensor, Tensor]", getattr(ctx, "saved_tensors")))  # noqa: B009


_forward.register_autograd(_gradient, setup_context=_save)
