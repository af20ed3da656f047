"""Learning-rate schedules: pure functions from the optimiser steps taken so far to a multiplier of the peak rate."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from ossicle.core.errors import ConfigError


def _ramp(step: int, warmup_steps: int) -> float:
    """Linear from 0 at step 0 to 1 at the end of warm-up."""
    return step / max(1, warmup_steps)


@dataclass(frozen=True)
class Schedule(ABC):
    """A multiplier in [0, 1] of the peak learning rate, without state: a resumed run takes the rates that were due.

    Args:
        max_steps: Optimiser steps of the whole run.
    """

    max_steps: int

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The multiplier of the update that follows ``step`` updates."""


@dataclass(frozen=True)
class Warmed(Schedule):
    """A schedule that rises to its peak in a number of steps.

    Args:
        max_steps: Optimiser steps of the whole run.
        warmup_steps: Steps to the peak.

    Raises:
        ConfigError: The warm-up is as long as the run.
    """

    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Refuse a warm-up that does not end."""
        if not 0 <= self.warmup_steps < self.max_steps:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} does not lie in [0, max_steps={self.max_steps})",
                "warm up for fewer steps than the run takes",
            )


@final
@dataclass(frozen=True)
class TriStage(Schedule):
    """Linear warm-up, a plateau and an exponential decay (arXiv 1904.08779, section 4.2; wav2vec 2.0's fine-tuning).

    Args:
        max_steps: Optimiser steps of the whole run.
        warmup_fraction: Part of the run spent on warming up.
        hold_fraction: Part of the run at the peak; what remains decays.
        start: Multiplier at the first step.
        end: Multiplier at the end of the decay.

    Raises:
        ConfigError: The fractions leave no room, or the ends are outside (0, 1].
    """

    warmup_fraction: float = 0.1
    hold_fraction: float = 0.4
    start: float = 0.01
    end: float = 0.05

    def __post_init__(self) -> None:
        """Refuse fractions that do not fit into the run."""
        fits = self.warmup_fraction >= 0 and self.hold_fraction >= 0 and self.warmup_fraction + self.hold_fraction <= 1
        if not fits or not (0 <= self.start <= 1 and 0 < self.end <= 1):
            raise ConfigError(
                f"schedule: warmup_fraction={self.warmup_fraction}, hold_fraction={self.hold_fraction}, "
                f"start={self.start}, end={self.end} make no tri-stage schedule",
                "let the fractions be >= 0 with a sum <= 1, start in [0, 1] and end in (0, 1]",
            )

    @override
    def __call__(self, step: int) -> float:
        warmup = int(self.warmup_fraction * self.max_steps)
        hold = int(self.hold_fraction * self.max_steps)
        if step < warmup:
            return self.start + (1 - self.start) * _ramp(step, warmup)
        if step < warmup + hold:
            return 1.0
        decay = max(1, self.max_steps - warmup - hold)
        return math.exp(math.log(self.end) * min(1.0, (step - warmup - hold) / decay))


@final
@dataclass(frozen=True)
class Polynomial(Warmed):
    """Linear warm-up, then a polynomial decay to ``end`` (wav2vec 2.0 and HuBERT: power 1, arXiv 2106.07447, IV-C).

    Args:
        max_steps: Optimiser steps of the whole run.
        warmup_steps: Steps to the peak.
        power: Exponent of the decay.
        end: Multiplier at the last step.

    Raises:
        ConfigError: The warm-up is as long as the run.
    """

    power: float = 1.0
    end: float = 0.0

    @override
    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return _ramp(step, self.warmup_steps)
        left = 1 - min(1.0, (step - self.warmup_steps) / (self.max_steps - self.warmup_steps))
        return self.end + (1 - self.end) * left**self.power


@final
@dataclass(frozen=True)
class Cosine(Warmed):
    """Linear warm-up, then half a cosine down to ``end`` (arXiv 1608.03983, equation 5, without restarts).

    Args:
        max_steps: Optimiser steps of the whole run.
        warmup_steps: Steps to the peak.
        end: Multiplier at the last step.

    Raises:
        ConfigError: The warm-up is as long as the run.
    """

    end: float = 0.0

    @override
    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return _ramp(step, self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / (self.max_steps - self.warmup_steps))
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * done))


@final
@dataclass(frozen=True)
class OneCycle(Warmed):
    """Half a cosine up, half a cosine down to 0 (arXiv 1708.07120, with the cosines of torch's ``OneCycleLR``).

    Args:
        max_steps: Optimiser steps of the whole run.
        warmup_steps: Steps to the peak.

    Raises:
        ConfigError: The warm-up is as long as the run.
    """

    @override
    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return 0.5 * (1 - math.cos(math.pi * _ramp(step, self.warmup_steps)))
        done = min(1.0, (step - self.warmup_steps) / (self.max_steps - self.warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * done))


@final
@dataclass(frozen=True)
class Noam(Warmed):
    """Linear warm-up, then the inverse square root of the step (arXiv 1706.03762, section 5.3), 1 where warm-up ends.

    The original scales by the model width; here the peak is the optimiser's learning rate.

    Args:
        max_steps: Optimiser steps of the whole run; the curve does not depend on it.
        warmup_steps: Steps to the peak.

    Raises:
        ConfigError: There is no warm-up, or it is as long as the run.
    """

    warmup_steps: int = 25_000

    def __post_init__(self) -> None:
        """Refuse a curve without a peak, and a warm-up that does not end."""
        super().__post_init__()
        if self.warmup_steps < 1:
            raise ConfigError(
                "schedule.warmup_steps=0 leaves Noam's curve without a peak", "set schedule.warmup_steps >= 1"
            )

    @override
    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return _ramp(step, self.warmup_steps)
        return math.sqrt(self.warmup_steps / step)
