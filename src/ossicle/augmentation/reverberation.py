"""Speech in rooms."""

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.augmentation.base import WaveformAugmentation
from ossicle.augmentation.response_source import ResponseSourceFactory
from ossicle.core.clock import FrameClock
from ossicle.core.shapes import Float, Int64
from ossicle.ops.augmentation import reverberate


@final
class Reverberation(WaveformAugmentation):
    """Each chosen row in a room of its own: convolved with an impulse response, in time and at the level that it had.

    Args:
        clock: The clock of the model's frames.
        responses: Builds the source of impulse responses, from ``rate_hz``.
        probability: Probability of each row.
    """

    def __init__(self, clock: FrameClock, *, responses: ResponseSourceFactory, probability: float = 1.0) -> None:
        super().__init__(clock, probability)
        self.responses = responses(rate_hz=clock.rate_hz)

    @override
    def load(self, device: torch.device) -> None:
        self.responses.load(device)

    @override
    def change(
        self, waveform_BS: Float[Tensor, "B S"], rows_R: Int64[Tensor, " R"], source: torch.Generator
    ) -> Float[Tensor, "R S"]:
        responses_RK = self.responses.draw(len(rows_R), source)
        return reverberate(waveform_BS.index_select(0, rows_R), responses_RK, self.responses.lead)
