"""Strided convolutions over channels-last frames as matrix products on views: no frame is copied (no im2col).

A kernel of k taps at stride s is ceil(k / s) products. Frames taken s at a time are rows of s * C values, and the j-th
product reads rows that begin j * s frames later; its weight is the j-th group of s taps. For k = s one reshape is all.

All rows of a batch lie end to end, so that one product serves the batch. What it makes across the border between two
rows is not a frame of either: a row of T frames gives T / s places, of which the first (T - k) / s + 1 are real and the
rest, at its end, are to be disregarded. So a stack of such convolutions runs at lengths that stay divisible.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float
from ossicle.ops.autocast import autocast_dtype


def strided_convolution(
    x_BTC: Float[Tensor, "B T C"], weight_OCK: Float[Tensor, "O C K"], stride: int
) -> Float[Tensor, "B Ts O"]:
    """Convolve frames; the weight is that of :class:`torch.nn.Conv1d`, and there is no bias.

    Args:
        x_BTC: Frames, contiguous, T divisible by the stride, shape (B, T, C).
        weight_OCK: Shape (O, C, K), K no less than the stride.
        stride: Frames between outputs.

    Returns:
        Shape (B, T / stride, O); places from (T - K) // stride + 1 on hold nothing of meaning. They must not reach a
        loss, and their gradient must be zero.

    Raises:
        ConfigError: The stride does not divide T, or exceeds the kernel.
    """
    if x_BTC.shape[1] % stride or weight_OCK.shape[2] < stride:
        raise ConfigError(
            f"{x_BTC.shape[1]} frames and a kernel of {weight_OCK.shape[2]} do not suit a stride of {stride}",
            "pad the frames to a multiple of the stride, and take a kernel that leaves no frame out",
        )
    dtype = autocast_dtype(x_BTC.device.type)
    if dtype is not None:
        x_BTC, weight_OCK = x_BTC.to(dtype), weight_OCK.to(dtype)
    # taps first: each group of taps is then a matrix of adjacent rows
    taps_KCO = weight_OCK.permute(2, 1, 0).contiguous()
    return _StridedConvolution.apply(x_BTC, taps_KCO, stride)


def _groups(taps_KCO: Tensor, stride: int) -> list[Tensor]:
    """The weight of each product, shape (taps * C, O)."""
    return [group.flatten(0, 1) for group in taps_KCO.split(stride)]


class _StridedConvolution(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: FunctionCtx, x_BTC: Tensor, taps_KCO: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x_BTC, taps_KCO)
        ctx.stride = stride  # ty: ignore[missing-attribute]  the context carries what is set on it
        rows = x_BTC.reshape(-1, stride * x_BTC.shape[2])
        first, *later = _groups(taps_KCO, stride)
        out = rows @ first
        for shift, group in enumerate(later, start=1):
            out[:-shift].addmm_(rows[shift:, : len(group)], group)
        return out.unflatten(0, (len(x_BTC), -1))

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x_BTC, taps_KCO = ctx.saved_tensors  # ty: ignore[missing-attribute]
        stride = ctx.stride  # ty: ignore[missing-attribute]
        grad = grads[0].reshape(-1, taps_KCO.shape[2])
        rows = x_BTC.reshape(-1, stride * x_BTC.shape[2])
        first, *later = _groups(taps_KCO, stride)
        weight_grads = [rows.T @ grad]
        weight_grads += [rows[shift:, : len(group)].T @ grad[:-shift] for shift, group in enumerate(later, start=1)]
        x_grad = None
        if ctx.needs_input_grad[0]:  # ty: ignore[missing-attribute]
            x_grad = grad @ first.T
            for shift, group in enumerate(later, start=1):
                x_grad[shift:, : len(group)].addmm_(grad[:-shift], group.T)
            x_grad = x_grad.view_as(x_BTC)
        return x_grad, torch.cat(weight_grads).view_as(taps_KCO), None
