"""Planned batches: which utterances stand in which batch, for ever, as a pure function of seed and shapes.

Each bucket has an endless stream of its utterances, one permutation after another, and batch j of a bucket of B rows
holds places [j B, (j + 1) B) of it. So every utterance occurs exactly once in each permutation, none is dropped, and a
batch may end one epoch and begin the next. The global sequence interleaves the buckets' batches by the place of their
first utterance in the epoch's order. Rank r of W takes every W-th batch of the sequence; the number of batches
consumed is all that a checkpoint needs.
"""

from collections import OrderedDict
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ossicle.core.errors import ConfigError
from ossicle.core.files import hash_json
from ossicle.core.seeds import derive_seed
from ossicle.data.buckets import Shapes

_PLANS_KEPT = 2  # the current epoch and the next, into which batches reach


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """One batch of the global sequence, before anything is read.

    Args:
        position: Place in the endless sequence of global batches.
        epoch: Epoch in which the batch starts.
        bucket: Which of the static shapes it has.
        ids: Rows of the dataset index, int64, shape (B,).
    """

    position: int
    epoch: int
    bucket: int
    ids: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The batches that start in one epoch.

    Args:
        epoch: Which epoch.
        first_position: Global position of the first batch.
        orders: Rows of the index in this epoch's order, one array a bucket.
        buckets: Bucket of each batch, in order.
        numbers: Number of each batch within its bucket's endless stream, in order.
    """

    epoch: int
    first_position: int
    orders: tuple[NDArray[np.uint32], ...]
    buckets: NDArray[np.int16]
    numbers: NDArray[np.int64]

    @property
    def num_batches(self) -> int:
        """Batches that start in this epoch."""
        return len(self.buckets)


class Plan:
    """The endless sequence of global batches over a dataset's index.

    Args:
        rows: The index: a structured array with fields ``shard`` and ``samples``, one entry an utterance.
        shapes: Crop lengths and batch rows.
        seed: Seeds every permutation.
        window_shards: Shards whose samples are shuffled together: more mix better, fewer keep reads local.

    Raises:
        ConfigError: No utterance fills the shortest crop, or ``window_shards`` is less than one.
    """

    def __init__(self, rows: NDArray[np.void], shapes: Shapes, *, seed: int, window_shards: int) -> None:
        if window_shards < 1:
            raise ConfigError(f"data.window_shards={window_shards} holds no shard", "give at least 1")
        self.shapes = shapes
        self.seed = seed
        self.window_shards = window_shards
        bucket_N = shapes.assign(rows["samples"])
        self._bucket_N = bucket_N
        self._shard_N = np.ascontiguousarray(rows["shard"], dtype=np.uint32)
        self._sizes = np.bincount(bucket_N[bucket_N >= 0], minlength=len(shapes.lengths)).astype(np.int64)
        self._rows = np.asarray(shapes.rows, dtype=np.int64)
        if not self._sizes.any():
            raise ConfigError("no utterance fills the shortest crop", "lower data.min_crop_s")
        self._epochs: OrderedDict[int, EpochPlan] = OrderedDict()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Utterances of each bucket."""
        return tuple(int(size) for size in self._sizes)

    @property
    def fingerprint(self) -> str:
        """Hash of all that the sequence depends on, beside the dataset's content."""
        return hash_json(
            {
                "shapes": asdict(self.shapes),
                "seed": self.seed,
                "window_shards": self.window_shards,
                "sizes": self.sizes,
            }
        )

    def first_position(self, epoch: int) -> int:
        """Global batches that start before an epoch."""
        return int((-(-epoch * self._sizes // self._rows)).sum())

    def epoch_at(self, position: int) -> int:
        """The epoch in which a global batch starts, by arithmetic alone."""
        # Rounding up adds less than one batch a bucket, so this guess is never high.
        batches_an_epoch = float((self._sizes / self._rows).sum())
        epoch = max(0, int((position - len(self._sizes)) / batches_an_epoch) - 1)
        while self.first_position(epoch + 1) <= position:
            epoch += 1
        return epoch

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of one epoch; the latest two are kept."""
        if epoch not in self._epochs:
            while len(self._epochs) >= _PLANS_KEPT:
                self._epochs.popitem(last=False)
            self._epochs[epoch] = self._make_epoch(epoch)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def batch(self, position: int) -> BatchSpec:
        """The batch at a position of the global sequence."""
        plan = self.epoch(self.epoch_at(position))
        bucket = int(plan.buckets[position - plan.first_position])
        number = int(plan.numbers[position - plan.first_position])
        places_B = number * self._rows[bucket] + np.arange(self._rows[bucket])
        epoch_B, place_B = np.divmod(places_B, self._sizes[bucket])
        ids_B = np.empty(len(places_B), dtype=np.int64)
        for touched in range(int(epoch_B[0]), int(epoch_B[-1]) + 1):
            here = epoch_B == touched
            ids_B[here] = self.epoch(touched).orders[bucket][place_B[here]]
        return BatchSpec(position, plan.epoch, bucket, ids_B)

    def _make_epoch(self, epoch: int) -> EpochPlan:
        order = self._global_order(epoch)
        bucket_of_place = self._bucket_N[order]
        # A stable sort by bucket keeps the epoch's order inside each; the too short ones, -1, come first.
        places = np.argsort(bucket_of_place, kind="stable")[len(order) - int(self._sizes.sum()) :]
        ends = np.cumsum(self._sizes)
        orders, first_places, buckets, numbers = [], [], [], []
        for k, (size, rows, end) in enumerate(zip(self._sizes, self._rows, ends, strict=True)):
            places_k = places[end - size : end]
            orders.append(order[places_k])
            numbers_k = np.arange(-(-epoch * size // rows), -(-(epoch + 1) * size // rows), dtype=np.int64)
            first_places.append(places_k[numbers_k * rows - epoch * size])
            buckets.append(np.full(len(numbers_k), k, dtype=np.int16))
            numbers.append(numbers_k)
        by_place = np.argsort(np.concatenate(first_places), kind="stable")
        return EpochPlan(
            epoch=epoch,
            first_position=self.first_position(epoch),
            orders=tuple(orders),
            buckets=np.concatenate(buckets)[by_place],
            numbers=np.concatenate(numbers)[by_place],
        )

    def _global_order(self, epoch: int) -> NDArray[np.uint32]:
        """Every row of the index: shards permuted, samples shuffled inside windows of neighbouring shards."""
        num_rows = len(self._shard_N)
        num_shards = int(self._shard_N.max()) + 1
        shards = np.random.Philox(derive_seed(self.seed, "shards", epoch)).random_raw(num_shards).argsort(kind="stable")
        window_of_shard = np.empty(num_shards, dtype=np.uint64)
        window_of_shard[shards] = np.arange(num_shards) // self.window_shards
        # One sort of unique 64-bit keys, window | random | row: values are sorted faster than places, and being
        # unique they come out alike on every machine. Philox's raw words are stable from one numpy to the next.
        row_bits = max(1, (num_rows - 1).bit_length())
        window_bits = int(window_of_shard.max()).bit_length()
        keys = np.random.Philox(derive_seed(self.seed, "samples", epoch)).random_raw(num_rows)
        keys >>= np.uint64(window_bits)
        keys >>= np.uint64(row_bits)
        keys <<= np.uint64(row_bits)
        keys |= np.arange(num_rows, dtype=np.uint64)
        if window_bits:
            keys |= window_of_shard[self._shard_N] << np.uint64(64 - window_bits)
        keys.sort()
        keys &= np.uint64((1 << row_bits) - 1)
        return keys.astype(np.uint32)
