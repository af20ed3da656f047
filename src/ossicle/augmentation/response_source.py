"""Where impulse responses of rooms come from: recordings, or noise that decays."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.augmentation.base import Range, check_range
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float
from ossicle.ops.augmentation import align_responses, decaying_responses, uniform


class ResponseSource(ABC):
    """Makes impulse responses of one length, whose direct path stands in one place.

    Args:
        rate_hz: Samples a second.
        length_s: Length of a response, in seconds.

    Attributes:
        lead: Sample of the direct path in every response.
        length: Samples of a response (K).

    Raises:
        ConfigError: The length is not above 0.
    """

    lead: int = 0

    def __init__(self, rate_hz: int, length_s: float) -> None:
        self.rate_hz = rate_hz
        self.length = round(length_s * rate_hz)
        if self.length < 2:
            raise ConfigError(f"augmentation: length_s={length_s} holds no echo", "give 0.1 or more")

    def load(self, device: torch.device) -> None:  # noqa: B027  a formula has nothing to load
        """Bring what is drawn from to the device."""

    @abstractmethod
    def draw(self, rows: int, source: torch.Generator) -> Float[Tensor, "R K"]:
        """Impulse responses, float32, shape (rows, K), on the generator's device."""


@runtime_checkable
class ResponseSourceFactory(Protocol):
    """Builds a source of impulse responses once the rate is known."""

    def __call__(self, *, rate_hz: int) -> ResponseSource:
        """A source at this rate."""
        ...


@final
class DecayingResponses(ResponseSource):
    """A direct path and a tail of noise that decays exponentially; needs no files.

    Args:
        rate_hz: Samples a second.
        length_s: Length of a response.
        decay_s: Least and greatest time in which the tail falls by 60 dB, in seconds.
        direct_db: Least and greatest energy of the direct path over that of the tail, in decibels.
        gap_ms: Time between the direct path and the tail.

    Raises:
        ConfigError: A number is out of its range.
    """

    def __init__(
        self,
        rate_hz: int,
        *,
        length_s: float = 0.5,
        decay_s: Range = (0.2, 0.8),
        direct_db: Range = (-3.0, 12.0),
        gap_ms: float = 2.0,
    ) -> None:
        super().__init__(rate_hz, length_s)
        self.decay_s = check_range("decay_s", decay_s)
        self.direct_db = check_range("direct_db", direct_db)
        self.gap_samples = max(1, round(gap_ms * rate_hz / 1000))
        if self.decay_s[0] <= 0 or self.gap_samples >= self.length:
            raise ConfigError(
                f"augmentation: decay_s={list(decay_s)} with gap_ms={gap_ms} leaves no tail in {length_s} s",
                "decays last longer than 0, gaps less than the response",
            )

    @override
    def draw(self, rows: int, source: torch.Generator) -> Float[Tensor, "R K"]:
        noise_RK = torch.randn(rows, self.length, generator=source, device=source.device)
        return decaying_responses(
            noise_RK,
            uniform(rows, *self.decay_s, source),
            uniform(rows, *self.direct_db, source),
            gap_samples=self.gap_samples,
            rate_hz=self.rate_hz,
        )


@final
class RecordedResponses(ResponseSource):
    """Impulse responses of real rooms, kept on the device.

    Args:
        rate_hz: Samples a second.
        recordings: ``recordings(rate_hz)`` reads them, each float32, shape (samples,); called once, at the start.
        length_s: Seconds of a response that are kept.
        lead_ms: Time before the direct path that is kept.

    Raises:
        ConfigError: The lead is not shorter than the response.
    """

    def __init__(
        self,
        rate_hz: int,
        *,
        recordings: Callable[[int], Sequence[Tensor]],
        length_s: float = 1.0,
        lead_ms: float = 1.0,
    ) -> None:
        super().__init__(rate_hz, length_s)
        self.recordings = recordings
        self.lead = round(lead_ms * rate_hz / 1000)
        if not 0 <= self.lead < self.length:
            raise ConfigError(f"augmentation: lead_ms={lead_ms} is out of range", "it is shorter than length_s")
        self.bank_NK: Tensor | None = None

    @override
    def load(self, device: torch.device) -> None:
        self.bank_NK = align_responses(self.recordings(self.rate_hz), self.lead, self.length).to(device)

    @override
    def draw(self, rows: int, source: torch.Generator) -> Float[Tensor, "R K"]:
        assert self.bank_NK is not None, "load() comes before the first batch"
        places_R = torch.randint(len(self.bank_NK), (rows,), generator=source, device=source.device)
        return self.bank_NK.index_select(0, places_R)
