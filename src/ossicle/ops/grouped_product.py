"""Products of groups of channels, each with a matrix of its own, written where they belong."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from typing_extensions import override

from ossicle.core.shapes import Float
from ossicle.ops.autocast import autocast_dtype


def grouped_product(x: Float[Tensor, "*rest D"], weight_GCF: Float[Tensor, "G C F"]) -> Float[Tensor, "*rest E"]:
    """``x @ block_diag(*weight)``: each group of channels is multiplied by itself.

    A batched product in torch lays its groups end to end, and a copy brings each frame together again; here it is told
    to write its groups side by side. In compiled graphs that copy is part of what follows.

    Args:
        x: Frames, shape (..., G x C).
        weight_GCF: A matrix for each group, shape (G, C, F).

    Returns:
        Shape (..., G x F), in autocast's type where that is on.
    """
    mixed = autocast_dtype(x.device.type)
    if mixed is not None:
        x, weight_GCF = x.to(mixed), weight_GCF.to(mixed)
    frames_PGC = x.flatten(0, -2).unflatten(-1, (len(weight_GCF), -1))
    if torch.compiler.is_compiling() or x.device.type == "meta":  # where torch counts its own operations alone
        out_PGF = torch.bmm(frames_PGC.transpose(0, 1), weight_GCF).transpose(0, 1)
    else:
        out_PGF = _GroupedProduct.apply(frames_PGC, weight_GCF)
    return out_PGF.flatten(1).unflatten(0, x.shape[:-1])


def _product(x_PGC: Tensor, weight_GCF: Tensor) -> Tensor:
    """Groups side by side, shape (P, G, F)."""
    out_PGF = x_PGC.new_empty(*x_PGC.shape[:2], weight_GCF.shape[2])
    torch.bmm(x_PGC.transpose(0, 1), weight_GCF, out=out_PGF.transpose(0, 1))
    return out_PGF


class _GroupedProduct(torch.autograd.Function):
    """The product and its gradients."""

    @staticmethod
    @override
    def forward(ctx: FunctionCtx, x_PGC: Tensor, weight_GCF: Tensor) -> Tensor:
        ctx.save_for_backward(x_PGC, weight_GCF)
        return _product(x_PGC, weight_GCF)

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_PGC, weight_GCF = ctx.saved_tensors  # ty: ignore[missing-attribute]
        of_x, of_weight = ctx.needs_input_grad  # ty: ignore[missing-attribute]
        grad_PGF = grads[0].contiguous()
        x_grad_PGC = _product(grad_PGF, weight_GCF.mT) if of_x else None
        weight_grad_GCF = torch.bmm(x_PGC.permute(1, 2, 0), grad_PGF.transpose(0, 1)) if of_weight else None
        return x_grad_PGC, weight_grad_GCF
