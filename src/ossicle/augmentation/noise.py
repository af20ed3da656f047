"""Speech in noise."""

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.augmentation.base import Range, WaveformAugmentation, check_range
from ossicle.augmentation.noise_source import NoiseSourceFactory
from ossicle.core.clock import FrameClock
from ossicle.core.shapes import Float, Int64
from ossicle.ops.augmentation import add_noise, uniform


@final
class Noise(WaveformAugmentation):
    """Noise over the whole of each chosen row, at its own signal-to-noise ratio: SPIRAL's student (arXiv 2201.10207).

    Args:
        clock: The clock of the model's frames.
        noise: Builds the source of noise, from ``rate_hz``.
        snr_db: Least and greatest power of speech over power of noise over the crop, in decibels.
        probability: Probability of each row.

    Raises:
        ConfigError: The ratios are no range.
    """

    def __init__(
        self,
        clock: FrameClock,
        *,
        noise: NoiseSourceFactory,
        snr_db: Range = (0.0, 30.0),
        probability: float = 1.0,
    ) -> None:
        super().__init__(clock, probability)
        self.noise = noise(rate_hz=clock.rate_hz)
        self.snr_db = check_range("snr_db", snr_db)

    @override
    def load(self, device: torch.device) -> None:
        self.noise.load(device)

    @override
    def change(
        self, waveform_BS: Float[Tensor, "B S"], rows_R: Int64[Tensor, " R"], source: torch.Generator
    ) -> Float[Tensor, "R S"]:
        noise_RS = self.noise.draw(len(rows_R), waveform_BS.shape[1], source)
        return add_noise(waveform_BS.index_select(0, rows_R), noise_RS, uniform(len(rows_R), *self.snr_db, source))
