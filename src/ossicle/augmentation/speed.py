"""Speech that is faster or slower: speed perturbation (Ko et al. 2015, "Audio augmentation for speech recognition")."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.augmentation.base import Augmentation
from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.core.seeds import generator
from ossicle.core.shapes import Float
from ossicle.ops.augmentation import pick_rows
from ossicle.ops.augmentation_speed import change_speed, follow_labels, latest_starts, speed_table


@dataclass(frozen=True, slots=True)
class _Draws:
    """Which rows change, how, and from where: each of shape (R,)."""

    rows: Tensor
    chosen: Tensor
    choice: Tensor
    starts: Tensor


@final
class Speed(Augmentation):
    """Each chosen row resampled by one of a few factors, which changes tempo and pitch.

    It moves frames in time, so labels follow by nearest frame, and the clean waveform, where there is one, is resampled
    alike. The fastest rows need more samples than they make: all rows of a batch are cut to what the fastest can fill,
    so nothing is padded and shapes stay static (1.1 costs 9 % of the crop); rows that are not chosen keep their
    beginning. ``starts_B`` still tells where crops began before.

    Args:
        clock: The clock of the model's frames, which labels are on.
        factors: Speeds other than 1, ratios of small integers, one of which a chosen row takes.
        probability: Probability of each row.

    Raises:
        ConfigError: A factor cannot be made.
    """

    def __init__(self, clock: FrameClock, *, factors: Sequence[float] = (0.9, 1.1), probability: float = 2 / 3) -> None:
        super().__init__(clock, probability)
        self.factors = tuple(factors)
        with torch.device("cpu"):
            self.table = speed_table(self.factors)

    @override
    def load(self, device: torch.device) -> None:
        self.table = self.table.to(device)

    @override
    @torch.no_grad()
    def __call__(self, batch: Batch, *, seed: int, purpose: str = "augmentation") -> Batch:
        if self.probability == 0:
            return batch
        rows, samples = batch.waveform_BS.shape
        device = batch.waveform_BS.device
        made = self.table.num_samples(samples)
        if self.clock.num_frames(made) == 0:
            raise DataError(
                f"crops of {samples} samples leave no frame at speeds {list(self.factors)}", "raise data.min_crop_s"
            )
        draws = self._draw(rows, samples, generator(seed, batch.position, 0, purpose, device))
        with torch.autocast(device.type, enabled=False):
            return replace(
                batch,
                waveform_BS=self._resample(batch.waveform_BS.float(), draws),
                clean_BS=None if batch.clean_BS is None else self._resample(batch.clean_BS.float(), draws),
                labels_BT=None if batch.labels_BT is None else self._follow(batch.labels_BT, draws, made),
            )

    def _draw(self, rows: int, samples: int, source: torch.Generator) -> _Draws:
        rows_R, chosen_R = pick_rows(rows, self.probability, source)
        choice_R = torch.randint(len(self.factors), (len(rows_R),), generator=source, device=source.device)
        latest_R = latest_starts(self.table, choice_R, samples)
        starts_R = (torch.rand(len(rows_R), generator=source, device=source.device) * (latest_R + 1)).long()
        return _Draws(rows_R, chosen_R, choice_R, starts_R)

    def _resample(self, waveform_BS: Float[Tensor, "B S"], draws: _Draws) -> Float[Tensor, "B _"]:
        """The chosen rows at other speeds, the others' beginnings, all of the length that the fastest can fill."""
        cut_BS = waveform_BS[:, : self.table.num_samples(waveform_BS.shape[1])]
        changed_RS = change_speed(waveform_BS.index_select(0, draws.rows), self.table, draws.choice, draws.starts)
        kept_RS = cut_BS.index_select(0, draws.rows)
        return cut_BS.index_copy(0, draws.rows, torch.where(draws.chosen[:, None], changed_RS, kept_RS))

    def _follow(self, labels_BT: Tensor, draws: _Draws, made: int) -> Tensor:
        factor_R = self.table.steps_V.index_select(0, draws.choice) / self.table.phases
        zeros_B = torch.zeros(len(labels_BT), dtype=torch.int64, device=labels_BT.device)
        starts_B = zeros_B.index_copy(0, draws.rows, torch.where(draws.chosen, draws.starts, 0))
        factors_B = (zeros_B + 1.0).index_copy(0, draws.rows, torch.where(draws.chosen, factor_R, 1.0))
        return follow_labels(labels_BT, self.clock, starts_B, factors_B, made)
