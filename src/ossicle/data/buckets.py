"""The few lengths that batches come in, chosen so that least audio is cut away."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ossicle.core.errors import ConfigError

CHUNK = 2**20  # utterances that are looked at together, so that memory stays flat


@dataclass(frozen=True, slots=True)
class Pieces:
    """How an utterance that no crop can hold is heard: in equal pieces, each of which is cropped once an epoch.

    Args:
        max_samples: The longest crop.
        min_samples: The shortest crop: no piece is shorter.
        max_cut: Share of an utterance that may be cut away before it is heard in one piece more; with 1 every
            utterance is one piece, as in wav2vec 2.0 (arXiv 2006.11477, section 4.2).
    """

    max_samples: int
    min_samples: int
    max_cut: float

    def count(self, samples_N: NDArray[np.integer]) -> NDArray[np.int64]:
        """Pieces of each utterance."""
        count_N = np.ones(len(samples_N), dtype=np.int64)
        long_N = np.flatnonzero(samples_N > self.max_samples)  # few, as a rule
        long = samples_N[long_N].astype(np.int64)
        needed = np.ceil(long * (1.0 - self.max_cut) / self.max_samples).astype(np.int64)
        count_N[long_N] = np.clip(needed, 1, long // self.min_samples)
        return count_N

    def spans(
        self, samples_B: NDArray[np.int64], pieces_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First sample of utterances' pieces, and the one after their last."""
        count_B = self.count(samples_B)
        return pieces_B * samples_B // count_B, (pieces_B + 1) * samples_B // count_B


@dataclass(frozen=True, slots=True)
class Shapes:
    """The static shapes of batches: bucket k holds batches of ``rows[k]`` crops of ``lengths[k]`` samples.

    Args:
        lengths: Samples of a crop, ascending, one a bucket.
        rows: Crops in a batch, one a bucket; ``rows[k] * lengths[k]`` is close to one budget.
        pieces: How long utterances are cut into pieces, or None where each is one.
    """

    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    pieces: Pieces | None = None

    def num_pieces(self, samples_N: NDArray[np.integer]) -> NDArray[np.int64]:
        """Crops that an epoch takes of each utterance."""
        return np.ones(len(samples_N), dtype=np.int64) if self.pieces is None else self.pieces.count(samples_N)

    def assign(self, samples_N: NDArray[np.integer]) -> NDArray[np.int16]:
        """Bucket of each utterance's pieces: the longest crop that they fill, or -1 where they fill none."""
        piece_N = samples_N if self.pieces is None else samples_N.astype(np.int64) // self.pieces.count(samples_N)
        return (np.searchsorted(np.asarray(self.lengths), piece_N, side="right") - 1).astype(np.int16)

    def spans(
        self, samples_B: NDArray[np.int64], pieces_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First sample of utterances' pieces, and the one after their last."""
        if self.pieces is None:
            return np.zeros_like(samples_B), samples_B
        return self.pieces.spans(samples_B, pieces_B)

    def num_excluded(self, samples_N: NDArray[np.integer]) -> int:
        """Utterances that are too short for any bucket."""
        return int((samples_N < self.lengths[0]).sum())

    def unused_fraction(self, samples_N: NDArray[np.integer], max_samples: int | None = None) -> float:
        """Share of the audio that one epoch leaves unheard: too short utterances, and what crops cut away.

        Args:
            samples_N: Samples of each utterance.
            max_samples: What lies beyond this length in an utterance does not count, as if it were cut on purpose;
                None counts all.
        """
        most = np.iinfo(np.int64).max if max_samples is None else max_samples
        crops = np.asarray((*self.lengths, 0), dtype=np.int64)
        offered = heard = 0
        for start in range(0, len(samples_N), CHUNK):
            part_N = samples_N[start : start + CHUNK].astype(np.int64)
            offered += int(np.minimum(part_N, most).sum())
            heard += int(np.minimum(crops[self.assign(part_N)] * self.num_pieces(part_N), most).sum())
        return 1.0 - heard / max(1, offered)


def choose_shapes(
    samples_N: NDArray[np.integer],
    *,
    max_crop_s: float,
    min_crop_s: float,
    num_shapes: int,
    batch_s: float,
    max_cut: float = 1.0,
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
        max_cut: Share of an utterance that may be cut away before it is heard in one piece more.
        quantum_samples: Crop lengths are multiples of this many samples.
        rate_hz: Samples a second.

    Raises:
        ConfigError: Numbers that contradict each other, or no utterance that is long enough.
    """
    pieces = pieces_of(
        max_crop_s=max_crop_s, min_crop_s=min_crop_s, max_cut=max_cut, quantum_samples=quantum_samples, rate_hz=rate_hz
    )
    counts = length_histogram(samples_N, pieces, quantum_samples)[0]
    return shapes_of(counts, pieces, num_shapes=num_shapes, batch_s=batch_s, rate_hz=rate_hz)


def shapes_of(
    heard: NDArray[np.integer | np.floating], pieces: Pieces, *, num_shapes: int, batch_s: float, rate_hz: int = 16_000
) -> Shapes:
    """The shapes that cut away the least of what an epoch hears: see :func:`choose_shapes`.

    Args:
        heard: How many pieces of each length an epoch hears, as :func:`length_histogram` counts them; fractions where
            utterances are heard unequally often.
        pieces: The rule of pieces.
        num_shapes: Most buckets to choose.
        batch_s: Audio in one batch of one rank, in seconds.
        rate_hz: Samples a second.

    Raises:
        ConfigError: Numbers that contradict each other, or no utterance that is long enough.
    """
    if num_shapes < 1 or batch_s <= 0:
        raise ConfigError(
            f"data.num_shapes={num_shapes} with data.batch_s={batch_s} makes no batch",
            "give at least 1 and more than 0",
        )
    if not heard.any():
        raise ConfigError(
            f"no utterance lasts data.min_crop_s={pieces.min_samples / rate_hz:g} s", "lower data.min_crop_s"
        )
    quantum_samples = pieces.max_samples // (len(heard) - 1)
    # whole numbers keep the optimum exact; what is heard less than once still counts
    counts = np.where(heard > 0, np.maximum(1, np.rint(heard)), 0).astype(np.int64)
    values = np.flatnonzero(counts)
    starts = optimal_starts(values, counts[values], num_shapes)
    lengths = values[starts] * quantum_samples
    rows = np.maximum(1, np.rint(batch_s * rate_hz / lengths)).astype(np.int64)
    merged = _merged(lengths, rows, np.add.reduceat(counts[values], starts))
    return merged if pieces.max_cut == 1.0 else replace(merged, pieces=pieces)


def pieces_of(
    *, max_crop_s: float, min_crop_s: float, max_cut: float, quantum_samples: int = 320, rate_hz: int = 16_000
) -> Pieces:
    """The rule of pieces, in samples.

    Raises:
        ConfigError: No crop fits between the shortest and the longest, or the share is none.
    """
    longest = int(max_crop_s * rate_hz) // quantum_samples * quantum_samples
    shortest = max(1, -(-int(min_crop_s * rate_hz) // quantum_samples)) * quantum_samples
    if not 0 < shortest <= longest:
        raise ConfigError(
            f"crops of data.min_crop_s={min_crop_s} to data.max_crop_s={max_crop_s} seconds are impossible",
            f"give 0 < min_crop_s <= max_crop_s, at least {quantum_samples / rate_hz} s",
        )
    if not 0 <= max_cut <= 1:
        raise ConfigError(f"data.max_cut={max_cut} is no share", "give 0 to 1; with 1 no utterance is cut into pieces")
    return Pieces(longest, shortest, max_cut)


def length_histogram(
    samples_N: NDArray[np.integer],
    pieces: Pieces,
    quantum_samples: int = 320,
    group_N: NDArray[np.integer] | None = None,
    num_groups: int = 1,
) -> NDArray[np.int64]:
    """How many pieces there are of each length, cut to the longest crop.

    Args:
        samples_N: Samples of each utterance.
        pieces: The rule of pieces.
        quantum_samples: The unit of lengths.
        group_N: Group of each utterance, or None where there is one.
        num_groups: Groups.

    Returns:
        Counts by group and length in quanta, shape (num_groups, longest + 1).
    """
    num_values = pieces.max_samples // quantum_samples + 1
    counts = np.zeros(num_groups * num_values, dtype=np.int64)
    for start in range(0, len(samples_N), CHUNK):
        part_N = samples_N[start : start + CHUNK].astype(np.int64)
        kept_N = part_N >= pieces.min_samples
        part_N = part_N[kept_N]
        number_N = pieces.count(part_N)
        place_N = np.minimum(part_N // number_N, pieces.max_samples) // quantum_samples
        if group_N is not None:
            place_N += group_N[start : start + CHUNK][kept_N].astype(np.int64) * num_values
        counts += np.bincount(place_N, weights=number_N, minlength=len(counts)).astype(np.int64)
    return counts.reshape(num_groups, num_values)


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
