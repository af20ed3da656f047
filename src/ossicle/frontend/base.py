"""The contract of a frontend."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ossicle.core.batch import Frames
from ossicle.core.clock import FrameClock
from ossicle.core.shapes import Float, Int


class Frontend(nn.Module, ABC):
    """Turns waveforms into frames, and states exactly which samples each frame sees.

    Attributes:
        clock: Kernel, stride and offset of the frames, in samples.
        dim: Channels of a frame (C).
        quantises: Whether frames are codes, and come with a penalty that an objective must add.
        causal: Whether a frame hears the samples that the clock says, and nothing of what comes after them: no norm
            over the row.
    """

    clock: FrameClock
    dim: int
    quantises: bool = False
    causal: bool = False

    def anneal(self, step: int) -> None:
        """Follow the number of optimiser steps taken, a host integer, where something in the frontend depends on it."""
        del step

    @abstractmethod
    def forward(self, waveform_BS: Float[Tensor, "B S"], lengths_B: Int[Tensor, " B"] | None = None) -> Frames:
        """Frames of waveforms.

        Args:
            waveform_BS: Samples in [-1, 1] at ``clock.rate_hz``, shape (B, S).
            lengths_B: Real samples of each row where rows are padded on the right, else None. The frames of a padded
                row equal those of the row alone.

        Returns:
            Features (B, T, C) with T = ``clock.num_frames(S)``, and their validity where lengths were given.
        """
