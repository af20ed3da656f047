"""Where to cut a recording whose speech and levels are known: pure functions of spans and numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from data_prep.vad import HOP
from ossicle.data.audio import RATE_HZ

_RELEASE = 0.15  # speech ends where its probability falls this much below where it began
_MIN_SPEECH = 3  # frames; shorter bursts are clicks

# costs in seconds of silence kept, which are what is weighed
_PIECE = 1.0  # pieces stay together unless a second of silence goes
_IN_SPEECH = 10.0  # for a cut through speech, and as much again for the loudest place
_TIGHT = 20.0  # for a second of silence that should stay beside speech, and the longest length takes away
_TOO_SHORT = 1000.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long pieces are, in samples.

    Args:
        min_samples: The shortest.
        max_samples: The longest.
        pad_samples: Silence that stays on each side of speech.
    """

    min_samples: int
    max_samples: int
    pad_samples: int


def speech_spans(
    probabilities_T: NDArray[np.float32], num_samples: int, threshold: float, min_silence: int
) -> list[tuple[int, int]]:
    """Where speech is, in samples.

    Speech begins where its probability reaches the threshold, and ends where it falls 0.15 below that. Silences that
    are too short are part of the speech; speech shorter than 96 ms is none.

    Args:
        probabilities_T: Probability of speech in each frame, shape (T,).
        num_samples: The recording's length; the last frame may lie half behind it.
        threshold: Where speech begins.
        min_silence: Shortest silence, in samples.

    Returns:
        First sample of each span and the one after its last.
    """
    spans: list[tuple[int, int]] = []
    start = None
    for frame, probability in enumerate([*probabilities_T.tolist(), 0.0]):
        if start is None and probability >= threshold:
            start = frame
        elif start is not None and (probability < threshold - _RELEASE or frame == len(probabilities_T)):
            if spans and (start - spans[-1][1]) * HOP < min_silence:
                start = spans.pop()[0]
            spans.append((start, frame))
            start = None
    return [(a * HOP, min(b * HOP, num_samples)) for a, b in spans if b - a >= _MIN_SPEECH]


def cut_pieces(
    spans: Sequence[tuple[int, int]], levels_T: NDArray[np.float32], num_samples: int, limits: Limits
) -> list[tuple[int, int]]:
    """The best pieces of a recording, by dynamic programming over all places where it may be cut.

    Every second of silence that is kept costs 1, as does a piece; a second that is missing beside speech because the
    piece would be too long costs 20. A cut through speech costs 10 to 20, by the level there, and is possible only in
    speech longer than the longest piece. Pieces that are too short cost more than all.

    Args:
        spans: Speech, in samples, in order and without overlap.
        levels_T: Level of every frame of 32 ms, in dB, shape (T,).
        num_samples: The recording's length.
        limits: Lengths.

    Returns:
        First sample of each piece and the one after its last, in order and without overlap.
    """
    atoms = _Atoms.of(spans, levels_T, num_samples, limits)
    num_atoms = len(atoms.starts)
    costs = [0.0, *[math.inf] * num_atoms]
    firsts = [0] * (num_atoms + 1)
    for stop in range(1, num_atoms + 1):
        for first in range(stop - 1, -1, -1):
            if atoms.ends[stop - 1] - atoms.starts[first] > limits.max_samples:
                break
            cost = costs[first] + atoms.cost(first, stop)
            if cost < costs[stop]:
                costs[stop], firsts[stop] = cost, first
    pieces: list[tuple[int, int]] = []
    stop = num_atoms
    while stop:
        pieces.append(atoms.extent(firsts[stop], stop))
        stop = firsts[stop]
    return pieces[::-1]


@dataclass(frozen=True, slots=True)
class _Atoms:
    """Stretches of speech that are not cut.

    Args:
        starts: First sample of each.
        ends: Sample after the last of each.
        borders: Sample that parts each from the one before it, and then the recording's end.
        penalties: What it costs to cut before each.
        speech: Samples of speech before each, and then in all.
        limits: Lengths of pieces.
    """

    starts: list[int]
    ends: list[int]
    borders: list[int]
    penalties: list[float]
    speech: list[int]
    limits: Limits

    @classmethod
    def of(
        cls, spans: Sequence[tuple[int, int]], levels_T: NDArray[np.float32], num_samples: int, limits: Limits
    ) -> "_Atoms":
        starts: list[int] = []
        penalties: list[float] = []
        ends: list[int] = []
        low, high = (float(levels_T.min()), float(levels_T.max())) if len(levels_T) else (0.0, 0.0)
        for start, end in spans:
            starts.append(start)
            penalties.append(0.0)
            for place in _quiet_places(start, end, levels_T, limits) if end - start > limits.max_samples else ():
                level = (float(levels_T[place // HOP]) - low) / max(high - low, 1e-6)
                starts.append(place)
                ends.append(place)
                penalties.append(_IN_SPEECH * (1 + level))
            ends.append(end)
        quiet = [_quietest(end, start, levels_T) for end, start in zip(ends[:-1], starts[1:], strict=True)]
        speech = accumulate((end - start for start, end in zip(starts, ends, strict=True)), initial=0)
        return cls(starts, ends, [0, *quiet, num_samples], penalties, list(speech), limits)

    def extent(self, first: int, stop: int) -> tuple[int, int]:
        """The piece of some atoms: with silence around them, and more of it where it would be too short."""
        low, high = self.borders[first], self.borders[stop]
        speech_start, speech_end = self.starts[first], self.ends[stop - 1]
        start = max(low, speech_start - self.limits.pad_samples)
        end = min(high, speech_end + self.limits.pad_samples)
        excess = end - start - self.limits.max_samples
        if excess > 0:
            before = min(speech_start - start, max(excess // 2, excess - (end - speech_end)))
            start, end = start + before, end - (excess - before)
        missing = self.limits.min_samples - (end - start)
        if missing > 0:
            before = min(start - low, max(missing // 2, missing - (high - end)))
            start, end = start - before, min(high, end + missing - before)
        return start, end

    def cost(self, first: int, stop: int) -> float:
        """What the piece of some atoms costs, with the cut before it."""
        start, end = self.extent(first, stop)
        silence = end - start - (self.speech[stop] - self.speech[first])
        missing = max(0, self.limits.min_samples - (end - start))
        too_short = _TOO_SHORT + missing / RATE_HZ if missing else 0.0
        pad = self.limits.pad_samples
        wanted_start = max(self.borders[first], self.starts[first] - pad)
        wanted_end = min(self.borders[stop], self.ends[stop - 1] + pad)
        tight = max(0, start - wanted_start) + max(0, wanted_end - end)
        return _PIECE + (silence + _TIGHT * tight) / RATE_HZ + too_short + self.penalties[first]


def _quietest(start: int, end: int, levels_T: NDArray[np.float32]) -> int:
    """Where a silence is parted: its least energetic frame, by whole dB, and of several the one nearest its middle.

    A detector tells weak sounds at the edges of speech from silence less surely than their level does.
    """
    middle = (start + end) // 2
    frames = range(start // HOP + 1, end // HOP - 1)
    places = ((round(float(levels_T[frame])), abs(frame * HOP + HOP // 2 - middle), frame) for frame in frames)
    quietest = min(places, default=None)
    return middle if quietest is None else quietest[2] * HOP + HOP // 2


def _quiet_places(start: int, end: int, levels_T: NDArray[np.float32], limits: Limits) -> list[int]:
    """The least energetic frame, to its middle, of each window of long speech: so narrow that pieces can be made."""
    spare = max(limits.max_samples - 2 * limits.min_samples, 0) // 3
    width = max(4 * HOP, min(spare, limits.max_samples // 10)) // HOP
    first, stop = start // HOP, -(-end // HOP)
    places = [
        (low + int(levels_T[low : min(low + width, stop)].argmin())) * HOP + HOP // 2
        for low in range(first, stop, width)
    ]
    return [place for place in places if start < place < end]
