"""Gradients that pass through scaled."""

from typing import final

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from typing_extensions import override


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale  # ty: ignore[missing-attribute]  the context carries what is set on it
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.scale, None  # ty: ignore[missing-attribute]


@final
class GradientScale(nn.Module):
    """The identity, whose gradient is multiplied by a constant (arXiv 2006.11477 scales the frontend's by 0.1).

    Args:
        scale: The factor; 1 leaves the gradient alone, 0 stops it.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    @override
    def forward(self, x: Tensor) -> Tensor:
        if self.scale == 1:
            return x
        return x.detach() if self.scale == 0 else _Scale.apply(x, self.scale)

    @override
    def extra_repr(self) -> str:
        return f"scale={self.scale}"
