"""From a global batch in audio-seconds to micro-batches a rank: what divides is derived, what does not is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ossicle.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BatchShare:
    """How a global batch is shared out.

    Args:
        batch_s: Audio-seconds of one optimiser step over all ranks.
        micro_batch_s: Audio-seconds of one forward pass of one rank.
        world: Ranks.
        accumulate: Micro-batches a rank and step.
    """

    batch_s: float
    micro_batch_s: float
    world: int
    accumulate: int

    def __str__(self) -> str:
        """One line that a person checks before a long run."""
        return (
            f"{self.batch_s:g} s of audio a step = {self.world} rank(s) x {self.accumulate} micro-batch(es) "
            f"x {self.micro_batch_s:g} s"
        )


def share_batch(batch_s: float, micro_batch_s: float, world: int) -> BatchShare:
    """Share a global batch over ranks and micro-batches.

    Args:
        batch_s: Audio-seconds of one optimiser step over all ranks.
        micro_batch_s: Audio-seconds that one rank takes at once (what its memory holds).
        world: Ranks.

    Raises:
        ConfigError: The global batch is no whole number of micro-batches for every rank; the nearest that is is named.
    """
    if batch_s <= 0 or micro_batch_s <= 0:
        raise ConfigError(
            f"batch_s={batch_s:g} and data.batch_s={micro_batch_s:g} must be positive", "state seconds of audio"
        )
    exact = batch_s / (micro_batch_s * world)
    accumulate = round(exact)
    if accumulate < 1 or abs(exact - accumulate) > 1e-6:
        unit = micro_batch_s * world
        lower, upper = max(1, int(exact)) * unit, (int(exact) + 1) * unit
        raise ConfigError(
            f"batch_s={batch_s:g} is not a whole number of {world} rank(s) x data.batch_s={micro_batch_s:g} s",
            f"set batch_s={lower:g} or batch_s={upper:g}, or data.batch_s={batch_s / (world * max(1, accumulate)):g}",
        )
    return BatchShare(batch_s, micro_batch_s, world, accumulate)


def check_crops(data: Mapping[str, Any]) -> None:
    """Refuse data whose numbers allow no crop.

    Args:
        data: The config of a run's data.

    Raises:
        ConfigError: No length lies between the shortest crop and the longest.
    """
    from ossicle.data.buckets import pieces_of

    if "max_crop_s" in data:
        pieces_of(max_crop_s=data["max_crop_s"], min_crop_s=data["min_crop_s"], max_cut=data.get("max_cut", 1.0))
