"""Utterances that other utterances of the batch, or noises, talk over: WavLM (arXiv 2110.13900, algorithm 1)."""

import logging
import math
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.augmentation.base import Range, WaveformAugmentation, check_range
from ossicle.augmentation.noise_source import NoiseSourceFactory
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float, Int64
from ossicle.ops.augmentation import overlay, uniform

_LOG = logging.getLogger(__name__)


@final
class Mixing(WaveformAugmentation):
    """A segment of another row, or of noise, over at most half of each chosen row; who speaks longer is meant.

    The other row is uniform among the batch's others (the paper's draw may be the row itself), the segment's length
    uniform from one sample, or from ``min_overlap`` of the crop, to just below ``max_overlap`` of it, both its places
    uniform, and the ratio of powers that of the whole crops. Where both shares are one, so are all lengths: NEST
    (arXiv 2408.13106) takes exactly half.

    Args:
        clock: The clock of the model's frames.
        probability: Probability of each row (p).
        min_overlap: Share of the crop that a segment has at least; 0 for one sample.
        max_overlap: Share of the crop that is never reached, at most 0.5, unless the least is as much.
        ratio_db: Least and greatest power of the row over that of the other, in decibels.
        noise: Builds a source of noise, from ``rate_hz``; None mixes utterances alone.
        noise_probability: Probability that a chosen row gets noise and not an utterance (p_n).
        noise_ratio_db: The same ratio for noise.

    Raises:
        ConfigError: A number is out of its range, or noise is wanted from no source.
    """

    def __init__(
        self,
        clock: FrameClock,
        *,
        probability: float = 0.2,
        min_overlap: float = 0.0,
        max_overlap: float = 0.5,
        ratio_db: Range = (-5.0, 5.0),
        noise: NoiseSourceFactory | None = None,
        noise_probability: float = 0.0,
        noise_ratio_db: Range = (-5.0, 20.0),
    ) -> None:
        super().__init__(clock, probability)
        if not 0 < max_overlap <= 0.5:
            raise ConfigError(
                f"augmentation: max_overlap={max_overlap} is out of range",
                "it lies in (0, 0.5]: beyond half of the crop nobody knows who is meant",
            )
        if not 0 <= min_overlap <= max_overlap:
            raise ConfigError(
                f"augmentation: min_overlap={min_overlap} is out of range", f"it lies in [0, max_overlap={max_overlap}]"
            )
        if not 0 <= noise_probability <= 1 or (noise is None and noise_probability > 0):
            raise ConfigError(
                f"augmentation: noise_probability={noise_probability} with noise={noise}",
                "give it in [0, 1], and a source of noise where it is above 0",
            )
        self.min_overlap = min_overlap
        self.max_overlap = max_overlap
        self.ratio_db = check_range("ratio_db", ratio_db)
        self.noise = None if noise is None else noise(rate_hz=clock.rate_hz)
        self.noise_probability = noise_probability
        self.noise_ratio_db = check_range("noise_ratio_db", noise_ratio_db)
        self._said_alone = False

    @override
    def load(self, device: torch.device) -> None:
        if self.noise is not None:
            self.noise.load(device)

    @override
    def change(
        self, waveform_BS: Float[Tensor, "B S"], rows_R: Int64[Tensor, " R"], source: torch.Generator
    ) -> Float[Tensor, "R S"]:
        rows, samples = waveform_BS.shape
        count, device = len(rows_R), waveform_BS.device
        if rows == 1 and not self._said_alone:
            self._said_alone = True
            _LOG.warning("utterance mixing leaves batches of one row as they are: there is no other row to mix in")
        steps_R = torch.randint(1, max(2, rows), (count,), generator=source, device=device)
        others_RS = waveform_BS.index_select(0, (rows_R + steps_R) % rows)
        if rows == 1:
            others_RS = torch.zeros_like(others_RS)  # silence is never mixed in
        ratio_db_R = uniform(count, *self.ratio_db, source)
        if self.noise is not None:
            noisy_R = torch.rand(count, generator=source, device=device) < self.noise_probability
            others_RS = torch.where(noisy_R[:, None], self.noise.draw(count, samples, source), others_RS)
            ratio_db_R = torch.where(noisy_R, uniform(count, *self.noise_ratio_db, source), ratio_db_R)
        shortest = max(1, int(samples * self.min_overlap))
        longest = max(shortest, math.ceil(samples * self.max_overlap) - 1)
        draws_3R = torch.rand(3, count, generator=source, device=device)
        lengths_R = shortest + (draws_3R[0] * (longest - shortest + 1)).long()
        return overlay(
            waveform_BS.index_select(0, rows_R),
            others_RS,
            ratio_db_R,
            starts_B=(draws_3R[1] * (samples - lengths_R + 1)).long(),
            other_starts_B=(draws_3R[2] * (samples - lengths_R + 1)).long(),
            lengths_B=lengths_R,
        )
