"""Layer norm of a residual sum whose branch is dropped out: what stands around every branch of a post-norm block.

On a GPU the three are one Triton kernel there and one back, which keep the rounded sum and draw the dropout again; in
compiled graphs too (docs/results/step_gpu.md).
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.core.shapes import Float
from ossicle.ops.autocast import autocast_dtype
from ossicle.ops.dropout import dropout as drop
from ossicle.ops.dropout_hash import PLACES, draw_seeds
from ossicle.ops.triton_kernels import serves

_WIDEST = 8192
"""Channels that a program can hold of a frame: more would not fit into its registers."""


def residual_norm(
    x: Float[Tensor, "*rest D"],
    branch: Float[Tensor, "*rest D"],
    weight_D: Float[Tensor, " D"],
    bias_D: Float[Tensor, " D"],
    *,
    dropout: float,
    epsilon: float,
) -> Float[Tensor, "*rest D"]:
    """``layer_norm(x + dropout(branch))`` over the last axis (arXiv 1706.03762, section 5.4).

    Args:
        x: What the branch is added to, shape (..., D).
        branch: What the branch made of it, same shape.
        weight_D: Gain of the norm, shape (D,).
        bias_D: Shift of the norm, shape (D,).
        dropout: Probability with which a value of the branch is dropped; 0 outside training.
        epsilon: Added to variances.

    Returns:
        Shape (..., D), of autocast's type where that is on. Mean, variance and their use are float32 or wider.
    """
    dim = x.shape[-1]
    if x.device.type != "cuda" or not serves("dropout, sum and norm", (x.dtype, branch.dtype), _problem(x)):
        return residual_norm_reference(x, branch, weight_D, bias_D, dropout=dropout, epsilon=epsilon)
    mixed = autocast_dtype(x.device.type)
    branch = branch if mixed is None else branch.to(mixed)
    seeds_2 = draw_seeds(x.device)
    normed_ND, _, _ = _forward(x.reshape(-1, dim), branch.reshape(-1, dim), weight_D, bias_D, seeds_2, dropout, epsilon)
    return normed_ND.view(branch.shape)


def _problem(x: Tensor) -> str | None:
    """What of a size speaks against the kernels, or None."""
    if x.shape[-1] > _WIDEST:
        return f"they hold {_WIDEST} channels of a frame at once, not {x.shape[-1]}"
    if x.numel() >= PLACES:
        return f"{x.numel()} values are more than they have places for"
    return None


def residual_norm_reference(
    x: Float[Tensor, "*rest D"],
    branch: Float[Tensor, "*rest D"],
    weight_D: Float[Tensor, " D"],
    bias_D: Float[Tensor, " D"],
    *,
    dropout: float,
    epsilon: float,
) -> Float[Tensor, "*rest D"]:
    """:func:`residual_norm` in plain torch, differentiated by autograd: what the kernels are held to."""
    total = x + (drop(branch, dropout) if dropout else branch)
    normed = functional.layer_norm(total, total.shape[-1:], weight_D, bias_D, epsilon)
    mixed = autocast_dtype(x.device.type)
    return normed if mixed is None else normed.to(mixed)


@torch.library.custom_op("ossicle::residual_norm", mutates_args=())
def _forward(  # noqa: PLR0917
    x_ND: Tensor, branch_ND: Tensor, weight_D: Tensor, bias_D: Tensor, seeds_2: Tensor, dropout: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    # Only here: triton is slow to import, and CPU runs need none of it.
    from ossicle.ops import residual_norm_triton  # noqa: PLC0415

    return residual_norm_triton.forward(
        x_ND.contiguous(), branch_ND.contiguous(), weight_D, bias_D, seeds_2, dropout, epsilon
    )


@_forward.register_fake
def _forward_shapes(  # noqa: PLR0917
    x_ND: Tensor,
    branch_ND: Tensor,
    weight_D: Tensor,  # noqa: ARG001
    bias_D: Tensor,  # noqa: ARG001
    seeds_2: Tensor,  # noqa: ARG001
    dropout: float,  # noqa: ARG001
    epsilon: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    moments_N2 = x_ND.new_empty(len(x_ND), 2, dtype=torch.float32)
    return branch_ND.new_empty(branch_ND.shape), x_ND.new_empty(x_ND.shape), moments_N2


@torch.library.custom_op("ossicle::residual_norm_backward", mutates_args=())
def _backward(  # noqa: PLR0917
    grad_ND: Tensor, sum_ND: Tensor, moments_N2: Tensor, weight_D: Tensor, seeds_2: Tensor, dropout: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from ossicle.ops import residual_norm_triton  # noqa: PLC0415

    return residual_norm_triton.backward(grad_ND.contiguous(), sum_ND, moments_N2, weight_D, seeds_2, dropout)


@_backward.register_fake
def _backward_shapes(  # noqa: PLR0917
    grad_ND: Tensor,
    sum_ND: Tensor,
    moments_N2: Tensor,  # noqa: ARG001
    weight_D: Tensor,
    seeds_2: Tensor,  # noqa: ARG001
    dropout: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(sum_ND),
        grad_ND.new_empty(grad_ND.shape),
        torch.empty_like(weight_D),
        torch.empty_like(weight_D),
    )


_Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float, float]


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: _Inputs, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep the sum and each frame's moments: what was dropped is drawn again."""
    _, _, weight_D, _, seeds_2, dropout, _ = inputs
    _, sum_ND, moments_N2 = output
    ctx.mark_non_differentiable(sum_ND, moments_N2)
    ctx.save_for_backward(sum_ND, moments_N2, weight_D, seeds_2)
    setattr(ctx, "dropout", dropout)  # noqa: B010


def _gradient(
    ctx: torch.autograd.function.FunctionCtx, grad_ND: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None, None]:
    """Gradients of x, branch, weight and bias."""
    saved = cast("tuple[Tensor, Tensor, Tensor, Tensor]", getattr(ctx, "saved_tensors"))  # noqa: B009
    return (*_backward(grad_ND, *saved, getattr(ctx, "dropout")), None, None, None)  # noqa: B009


_forward.register_autograd(_gradient, setup_context=_save)
