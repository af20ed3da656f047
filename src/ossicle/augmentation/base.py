"""The contracts of augmentations."""

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.seeds import generator
from ossicle.core.shapes import Float, Int64
from ossicle.ops.augmentation import pick_rows

Range = tuple[float, float]
"""Least and greatest value of a uniform draw."""


class Augmentation(ABC):
    """Changes a batch on its device, as a pure function of the batch, the run's seed and the batch's position.

    Args:
        clock: The clock of the model's frames, which labels follow.
        probability: Probability with which each row is changed.

    Raises:
        ConfigError: The probability is none.
    """

    def __init__(self, clock: FrameClock, probability: float = 1.0) -> None:
        if not 0 <= probability <= 1:
            raise ConfigError(f"augmentation: probability={probability} is none", "it lies in [0, 1]")
        self.clock = clock
        self.probability = probability

    def load(self, device: torch.device) -> None:  # noqa: B027  most parts have nothing to load
        """Bring what the part draws from to the device. Called once, before the first batch."""

    @abstractmethod
    def __call__(self, batch: Batch, *, seed: int, purpose: str = "augmentation") -> Batch:
        """The batch as the model shall hear it.

        Args:
            batch: Crops of one length, on the device.
            seed: The run's seed.
            purpose: Tells this part's draws from those of other parts.

        Returns:
            The changed batch, with ``clean_BS`` where the speech was added to or distorted; the batch itself where
            nothing can change.
        """


class WaveformAugmentation(Augmentation):
    """Distorts or adds to some rows; what is said stays in its time, so labels stay as they are."""

    @override
    @torch.no_grad()
    def __call__(self, batch: Batch, *, seed: int, purpose: str = "augmentation") -> Batch:
        if self.probability == 0:
            return batch
        device = batch.waveform_BS.device
        source = generator(seed, batch.position, 0, purpose, device)
        with torch.autocast(device.type, enabled=False):
            waveform_BS = batch.waveform_BS.float()
            rows_R, chosen_R = pick_rows(len(waveform_BS), self.probability, source)
            kept_RS = waveform_BS.index_select(0, rows_R)
            changed_RS = torch.where(chosen_R[:, None], self.change(waveform_BS, rows_R, source), kept_RS)
            heard_BS = waveform_BS.index_copy(0, rows_R, changed_RS)
        return replace(batch, waveform_BS=heard_BS, clean_BS=batch.speech)

    @abstractmethod
    def change(
        self, waveform_BS: Float[Tensor, "B S"], rows_R: Int64[Tensor, " R"], source: torch.Generator
    ) -> Float[Tensor, "R S"]:
        """Some rows of a batch, changed.

        Args:
            waveform_BS: Float32 samples, on the generator's device; left as they are.
            rows_R: The rows, each at most once.
            source: Source of everything that is drawn.

        Returns:
            The changed rows, in the order of ``rows_R``.
        """


def check_range(name: str, bounds: Range) -> Range:
    """Two numbers in order, as a config gives them.

    Raises:
        ConfigError: They are not two, or not in order.
    """
    if len(bounds) != 2 or not bounds[0] <= bounds[1]:
        raise ConfigError(f"augmentation: {name}={list(bounds)} is no range", "give [least, greatest]")
    return float(bounds[0]), float(bounds[1])
