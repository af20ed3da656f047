"""Batch normalisation over frames that knows which of them are real."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.shapes import Bool, Float
from ossicle.layer.normalisation import at_least_float32


@final
class FrameBatchNorm(nn.Module):
    """Batch normalisation (arXiv 1502.03167) of each channel of (B, T, C) over all real frames of a batch.

    In training the moments are those of the batch's real frames, padding apart, and rows therefore know each other. In
    evaluation they are the running ones: each frame is mapped alone, and a padded row equals the row by itself. It
    computes in float32 at least.

    Args:
        dim: Channels (C).
        momentum: Share of a batch in the running moments.
        epsilon: Added to the variance.
    """

    def __init__(self, dim: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    @override
    def forward(
        self, x_BTC: Float[Tensor, "B T C"], valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T C"]:
        """Normalise frames.

        Args:
            x_BTC: Frames, shape (B, T, C).
            valid_BT: True where a frame is real, or None where every frame is.

        Returns:
            Normalised frames, in float32 at least.
        """
        x_BTC = at_least_float32(x_BTC)
        if valid_BT is not None:
            x_BTC = x_BTC.masked_fill(~valid_BT[..., None], 0)  # a NaN there would reach the weights' gradients
        # torch's kernel refuses narrow weights, and of one frame it would put a variance of 0 / 0 into the running one.
        fused = not self.training or (valid_BT is None and x_BTC.shape[0] * x_BTC.shape[1] > 1)
        if fused and self.weight.dtype == x_BTC.dtype:
            return self._fused(x_BTC)
        running = self.running_mean, self.running_var
        mean_C, variance_C = self._batch_moments(x_BTC, valid_BT) if self.training else running
        scale_C = self.weight * torch.rsqrt(variance_C + self.epsilon)
        return (x_BTC - mean_C) * scale_C + self.bias

    def _fused(self, x_BTC: Tensor) -> Tensor:
        """By the kernel of torch, where all frames count."""
        y_PC = functional.batch_norm(
            x_BTC.flatten(0, 1),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.epsilon,
        )
        return y_PC.view_as(x_BTC)

    def _batch_moments(self, x_BTC: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (of the population) of the batch's real frames; the running ones follow."""
        if valid_BT is None:
            valid_BT = x_BTC.new_ones(x_BTC.shape[:2], dtype=torch.bool)
        absent_BT1 = ~valid_BT[..., None]
        count = valid_BT.sum().to(x_BTC.dtype)
        at_least_one = count.clamp(min=1)
        mean_C = x_BTC.sum((0, 1)) / at_least_one
        variance_C = (x_BTC - mean_C).masked_fill(absent_BT1, 0).square().sum((0, 1)) / at_least_one
        with torch.no_grad():
            unbiased_C = variance_C * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), self.momentum)
        return mean_C, variance_C
