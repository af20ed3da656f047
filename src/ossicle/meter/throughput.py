"""How much audio passes, and how long the host waits for it: counted on the host, where shapes are known."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Passage:
    """What passed in a stretch of time on one rank.

    Args:
        audio_s: Seconds of audio.
        wait_s: Seconds in which the host waited for a batch.
        wall_s: Seconds of the stretch.
    """

    audio_s: float
    wait_s: float
    wall_s: float


class Throughput:
    """Counts one rank's audio and waiting. Takes clock readings and shapes only: never a value from a device.

    Attributes:
        audio_s: Seconds of audio since the start of the process.
        wait_s: Seconds of waiting since the start of the process.
        crops: How many rows of each length in samples passed.
    """

    def __init__(self) -> None:
        self.audio_s: float = 0.0
        self.wait_s: float = 0.0
        self.crops: Final[Counter[int]] = Counter()
        self._waiting_since: float | None = None
        self._taken = Passage(0.0, 0.0, 0.0)
        self._since = time.perf_counter()

    def start(self) -> None:
        """A stretch begins now; the host waits for its first batch."""
        self._since = time.perf_counter()
        self.wait()

    def wait(self) -> None:
        """The host begins to wait for a batch."""
        self._waiting_since = time.perf_counter()

    def arrive(self) -> None:
        """The batch that was waited for is here."""
        if self._waiting_since is not None:
            self.wait_s += time.perf_counter() - self._waiting_since
        self._waiting_since = None

    def count(self, rows: int, num_samples: int, rate_hz: int) -> None:
        """A batch of shape (rows, num_samples) was trained on."""
        self.audio_s += rows * num_samples / rate_hz
        self.crops[num_samples] += rows

    def take(self) -> Passage:
        """What passed since the last call, and a new stretch."""
        now = time.perf_counter()
        passage = Passage(self.audio_s - self._taken.audio_s, self.wait_s - self._taken.wait_s, now - self._since)
        self._taken = Passage(self.audio_s, self.wait_s, 0.0)
        self._since = now
        return passage
