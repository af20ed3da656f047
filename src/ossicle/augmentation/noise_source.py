"""Where noise comes from: recordings, or a shaped random spectrum."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.augmentation.base import Range, check_range
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.shapes import Float
from ossicle.ops.augmentation import colour, fast_length, uniform

_FULL_SCALE = 32768.0


class NoiseSource(ABC):
    """Makes rows of noise at any level.

    Args:
        rate_hz: Samples a second.
    """

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz

    def load(self, device: torch.device) -> None:  # noqa: B027  a formula has nothing to load
        """Bring what is drawn from to the device."""

    @abstractmethod
    def draw(self, rows: int, samples: int, source: torch.Generator) -> Float[Tensor, "R S"]:
        """Noise, float32, shape (rows, samples), on the generator's device."""


@runtime_checkable
class NoiseSourceFactory(Protocol):
    """Builds a source of noise once the rate is known."""

    def __call__(self, *, rate_hz: int) -> NoiseSource:
        """A source at this rate."""
        ...


@final
class ColouredNoise(NoiseSource):
    """Gaussian noise whose power falls with frequency as a random power of it; needs no files.

    Args:
        rate_hz: Samples a second.
        exponent: Least and greatest exponent: 0 is white, 1 pink, 2 brown.
        low_hz: Lowest frequency that it holds, above 0.

    Raises:
        ConfigError: The exponents are no range, or the lowest frequency is not above 0.
    """

    def __init__(self, rate_hz: int, *, exponent: Range = (0.0, 2.0), low_hz: float = 20.0) -> None:
        super().__init__(rate_hz)
        self.exponent = check_range("exponent", exponent)
        if not 0 < low_hz < rate_hz / 2:
            raise ConfigError(f"augmentation: low_hz={low_hz} is out of range", "it lies between 0 and half the rate")
        self.low_hz = low_hz

    @override
    def draw(self, rows: int, samples: int, source: torch.Generator) -> Float[Tensor, "R S"]:
        bins = fast_length(samples) // 2 + 1
        normal_RF2 = torch.randn(rows, bins, 2, generator=source, device=source.device)
        exponent_R = uniform(rows, *self.exponent, source)
        return colour(normal_RF2, exponent_R, samples=samples, low_hz=self.low_hz, rate_hz=self.rate_hz)


@final
class RecordedNoise(NoiseSource):
    """Random windows of recordings, which lie end to end on the device as 16-bit samples.

    Args:
        rate_hz: Samples a second.
        recordings: ``recordings(rate_hz)`` reads them, int16, shape (N,); called once, at the start.
    """

    def __init__(self, rate_hz: int, *, recordings: Callable[[int], Tensor]) -> None:
        super().__init__(rate_hz)
        self.recordings = recordings
        self.bank_N: Tensor | None = None

    @override
    def load(self, device: torch.device) -> None:
        bank_N = self.recordings(self.rate_hz)
        if bank_N.dtype != torch.int16 or bank_N.ndim != 1 or len(bank_N) == 0:
            raise DataError(
                f"noise recordings came as {bank_N.dtype} of shape {tuple(bank_N.shape)}", "give int16, shape (N,)"
            )
        self.bank_N = bank_N.to(device)

    @override
    def draw(self, rows: int, samples: int, source: torch.Generator) -> Float[Tensor, "R S"]:
        assert self.bank_N is not None, "load() comes before the first batch"
        size = len(self.bank_N)
        starts_R = torch.randint(size, (rows,), generator=source, device=source.device)
        places_RS = (starts_R[:, None] + torch.arange(samples, device=source.device)) % size
        return self.bank_N[places_RS].float() / _FULL_SCALE
