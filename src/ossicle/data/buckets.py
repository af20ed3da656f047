"""The few lengths that batches come in, chosen so that least audio is cut away."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ossicle.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Shapes:
    """The static shapes of batches: bucket k holds batches of ``rows[k]`` crops of ``lengths[k]`` samples.

    Args:
        lengths: Samples of a crop, ascending, one a bucket.
        rows: Crops in a batch, one a bucket; ``rows[k] * lengths[k]`` is close to one budget.
    """

    lengths: tuple[int, ...]
    rows: tuple[int, ...]

    def assign(self, samples_N: NDArray[np.integer]) -> NDArray[np.int16]:
        """Bucket of each utterance: the longest crop that it fills, or -1 where it fills none."""
        return (np.searchsorted(np.asarray(self.lengths), samples_N, side="right") - 1).astype(np.int16)

    def num_excluded(self, samples_N: NDArray[np.integer]) -> int:
        """Utterances that are too short for any bucket."""
        return int((samples_N < self.lengths[0]).sum())

    def unused_fraction(self, samples_N: NDArray[np.integer], max_samples: int) -> float:
        """Share of the audio that one epoch leaves unheard: too short utterances, and what crops cut away.

        Args:
            samples_N: Samples of each utterance.
            max_samples: What lies beyond this length in an utterance does not count: it is cut on purpose.
        """
        offered = np.minimum(samples_N, max_samples).sum(dtype=np.int64)
        crops = np.asarray((*self.lengths, 0), dtype=np.int64)[self.assign(samples_N)]
        return 1.0 - float(np.minimum(crops, max_samples).sum()) / max(1, int(offered))


def choose_shapes(
    samples_N: NDArray[np.integer],
    *,
    max_crop_s: float,
    min_crop_s: float,
    num_shapes: int,
    batch_s: float,
    quantum_samples: int = 320,
    rate_hz: int = 16_000,
) -> Shapes:
    """Choose at most ``num_shapes`` crop lengths that cut away the least audio, by dynamic programming.

    Durations are cut to ``max_crop_s`` and quantised. A bucket with fewer utterances than rows is merged into the next
    shorter one; the shortest keeps its rows, and its batches then span several epochs.

    Args:
        samples_N: Samples of each utterance.
        max_crop_s: Longest crop, in seconds.
        min_crop_s: Utterances shorter than this are left out.
        num_shapes: Most buckets to choose.
        batch_s: Audio in one batch of one rank, in seconds.
        quantum_samples: Crop lengths are multiples of this many samples.
        rate_hz: Samples a second.

    Raises:
        ConfigError: Numbers that contradict each other, or no utterance that is long enough.
    """
    longest = int(max_crop_s * rate_hz) // quantum_samples * quantum_samples
    shortest = max(1, -(-int(min_crop_s * rate_hz) // quantum_samples)) * quantum_samples
    if not 0 < shortest <= longest:
        raise ConfigError(
            f"crops of data.min_crop_s={min_crop_s} to data.max_crop_s={max_crop_s} seconds are impossible",
            f"give 0 < min_crop_s <= max_crop_s, at least {quantum_samples / rate_hz} s",
        )
    if num_shapes < 1 or batch_s <= 0:
        raise ConfigError(
            f"data.num_shapes={num_shapes} with data.batch_s={batch_s} makes no batch",
            "give at least 1 and more than 0",
        )
    kept_N = samples_N[samples_N >= shortest]
    if kept_N.size == 0:
        raise ConfigError(
            f"none of {samples_N.size} utterances lasts data.min_crop_s={min_crop_s} s",
            f"lower data.min_crop_s; the longest lasts {samples_N.max(initial=0) / rate_hz:.2f} s",
        )
    quanta_N = np.minimum(kept_N, longest).astype(np.int64) // quantum_samples
    histogram = np.bincount(quanta_N)
    values = np.flatnonzero(histogram)
    starts = optimal_starts(values, histogram[values], num_shapes)
    lengths = values[starts] * quantum_samples
    rows = np.maximum(1, np.rint(batch_s * rate_hz / lengths)).astype(np.int64)
    counts = np.add.reduceat(histogram[values], starts)
    return _merged(lengths, rows, counts)


def optimal_starts(values: NDArray[np.integer], counts: NDArray[np.integer], num_groups: int) -> NDArray[np.int64]:
    """Cut ascending values into groups so that their excess over each group's smallest is least in sum.

    Args:
        values: Distinct values, ascending, shape (V,).
        counts: How often each occurs, shape (V,).
        num_groups: Most groups.

    Returns:
        Place of each group's first value, ascending; the first is 0.
    """
    num_values = len(values)
    num_groups = min(num_groups, num_values)
    count_before = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    total_before = np.concatenate(([0], np.cumsum(counts * values, dtype=np.int64)))
    # best[j]: least excess of the first j values in the groups so far; the last group starts at choice[group, j]
    best = total_before - count_before * values[0]
    choice = np.zeros((num_groups, num_values + 1), dtype=np.int64)
    for group in range(1, num_groups):
        # excess of values i..j-1 as one group is total[j] - total[i] - values[i] * (count[j] - count[i])
        fixed = best[:-1] - total_before[:-1] + values * count_before[:-1]
        improved = best.copy()
        for j in range(1, num_values + 1):
            costs = fixed[:j] - values[:j] * count_before[j] + total_before[j]
            i = int(costs.argmin())
            improved[j] = costs[i]
            choice[group, j] = i
        best = improved
    starts = []
    end = num_values
    for group in range(num_groups - 1, -1, -1):
        end = int(choice[group, end])
        starts.append(end)
        if end == 0:
            break
    return np.asarray(starts[::-1], dtype=np.int64)


def _merged(lengths: NDArray[np.int64], rows: NDArray[np.int64], counts: NDArray[np.int64]) -> Shapes:
    """Merge each bucket with fewer utterances than rows into the next shorter, from the longest down."""
    kept: list[int] = []
    carried = 0
    for k in range(len(lengths) - 1, -1, -1):
        if k > 0 and counts[k] + carried < rows[k]:
            carried += int(counts[k])
        else:
            kept.append(k)
            carried = 0
    kept.reverse()
    return Shapes(tuple(int(lengths[k]) for k in kept), tuple(int(rows[k]) for k in kept))
