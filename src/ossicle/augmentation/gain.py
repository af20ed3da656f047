"""Speech that is louder or softer."""

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.augmentation.base import Range, WaveformAugmentation, check_range
from ossicle.core.clock import FrameClock
from ossicle.core.shapes import Float, Int64
from ossicle.ops.augmentation import uniform


@final
class Gain(WaveformAugmentation):
    """Each chosen row louder by its own number of decibels. Nothing is clipped: samples may leave [-1, 1].

    Args:
        clock: The clock of the model's frames.
        gain_db: Least and greatest gain, in decibels.
        probability: Probability of each row.

    Raises:
        ConfigError: The gains are no range.
    """

    def __init__(self, clock: FrameClock, *, gain_db: Range = (-12.0, 6.0), probability: float = 1.0) -> None:
        super().__init__(clock, probability)
        self.gain_db = check_range("gain_db", gain_db)

    @override
    def change(
        self, waveform_BS: Float[Tensor, "B S"], rows_R: Int64[Tensor, " R"], source: torch.Generator
    ) -> Float[Tensor, "R S"]:
        gain_R = 10 ** (uniform(len(rows_R), *self.gain_db, source) / 20)
        return waveform_BS.index_select(0, rows_R) * gain_R[:, None]
