"""What the kernels of the selective scan take and give; letters beside the legend's: S segments of frames."""

from typing import Final, NamedTuple

import torch
from torch import Tensor

SEGMENT: Final = 32
"""Frames between states that are kept: what a processor's second cache holds, 128 KiB of 64 channels' 16 states."""


class Inputs(NamedTuple):
    """What a scan reads, contiguous, of one type; or the gradients of that.

    Args:
        x_BTE: Frames, shape (B, T, E).
        step_BTE: Positive steps in time, same shape.
        rates_EN: Negative rates, shape (E, N).
        enter_BTN: How a frame enters the states, shape (B, T, N).
        leave_BTN: How the states leave, same shape.
    """

    x_BTE: Tensor
    step_BTE: Tensor
    rates_EN: Tensor
    enter_BTN: Tensor
    leave_BTN: Tensor

    def state_first(self) -> tuple[Tensor, ...]:
        """The same, with rates of shape (N, E): a state's line of channels lies together."""
        return self._replace(rates_EN=self.rates_EN.T.contiguous())


class Run(NamedTuple):
    """What the way there gives.

    Args:
        said_BTE: What the states say, shape (B, T, E).
        starts_BSNE: States before each segment, shape (B, S, N, E).
    """

    said_BTE: Tensor
    starts_BSNE: Tensor

    @classmethod
    def empty(cls, inputs: Inputs) -> "Run":
        """Room for the run of some inputs."""
        rows, frames, channels = inputs.x_BTE.shape
        starts_BSNE = inputs.x_BTE.new_empty(rows, -(-frames // SEGMENT), inputs.rates_EN.shape[1], channels)
        return cls(torch.empty_like(inputs.x_BTE), starts_BSNE)
