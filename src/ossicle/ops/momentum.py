"""How much of itself a teacher keeps in a step: pure functions of the optimiser steps taken."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from ossicle.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Momentum(ABC):
    """The share m in [0, 1] of teacher <- m * teacher + (1 - m) * student.

    Args:
        start: The share at step 0.

    Raises:
        ConfigError: A share outside [0, 1], or a time below 0.
    """

    start: float

    def __post_init__(self) -> None:
        """Refuse what is no momentum."""
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"momentum.{name}={value} is below 0", "give what the docstring says")
        for value in (self.start, getattr(self, "end", 1.0)):
            if not 0 <= value <= 1:
                raise ConfigError(f"a momentum of {value} does not lie in [0, 1]", "such as 0.999")

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The share after ``step`` optimiser steps."""


@final
@dataclass(frozen=True, slots=True)
class Linear(Momentum):
    """From ``start`` to ``end`` in a straight line, then constant (arXiv 2202.03555, section 3.2).

    Args:
        start: The share at step 0.
        end: The share from ``steps`` on.
        steps: Optimiser steps of the rise.
        freeze_at: Step from which the teacher stands still (m = 1), or None for never.
    """

    end: float = 1.0
    steps: int = 0
    freeze_at: int | None = None

    @override
    def __call__(self, step: int) -> float:
        if self.freeze_at is not None and step >= self.freeze_at:
            return 1.0
        done = min(1.0, step / self.steps) if self.steps else 1.0
        return self.start + (self.end - self.start) * done


@final
@dataclass(frozen=True, slots=True)
class Cosine(Momentum):
    """From ``start`` to ``end`` by half a cosine (arXiv 2006.07733, section 3.2, as SPIRAL takes it, arXiv 2201.10207).

    Args:
        start: The share at step 0.
        end: The share from ``steps`` on.
        steps: Optimiser steps of the rise.
    """

    end: float = 1.0
    steps: int = 0

    @override
    def __call__(self, step: int) -> float:
        done = min(1.0, step / self.steps) if self.steps else 1.0
        return self.end - (self.end - self.start) * 0.5 * (1 + math.cos(math.pi * done))


@final
@dataclass(frozen=True, slots=True)
class Exponential(Momentum):
    """1 - (1 - start) * exp(-step / time): towards 1, never there (arXiv 2512.20308).

    Args:
        start: The share at step 0.
        time: Optimiser steps in which what is missing to 1 falls by the factor e.
    """

    time: float = 20_000.0

    @override
    def __call__(self, step: int) -> float:
        return 1 - (1 - self.start) * math.exp(-step / self.time) if self.time else 1.0
