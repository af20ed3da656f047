"""Planned batches: which utterances stand in which batch, for ever, as a pure function of seed, shapes and shares.

Components (a dataset, or one language of one source of a mixture) have endless streams of their own, one a bucket: one
permutation after another, so that each item occurs exactly once in every pass. Component c makes v_c passes an epoch:
by epoch t, its stream of n items has given floor(v_c n t + phase) of them. That is counted in whole numbers, so every
place of every stream is found by arithmetic, without what came before it; and no component is ever an item away from
what is due by then. With one component v is 1: an epoch is a pass.

A bucket's stream puts its components' items in the order of their times t, and batch j of a bucket of B rows holds
places [j B, (j + 1) B) of it: none is dropped, and a batch may end one epoch and begin the next. The global sequence
interleaves the buckets' batches evenly over the epoch. Rank r of W takes every W-th batch of the sequence; the number
of batches consumed is all that a checkpoint needs.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ossicle.core.errors import ConfigError
from ossicle.core.files import hash_json
from ossicle.core.seeds import derive_seed
from ossicle.data.buckets import Shapes
from ossicle.data.component import Component, Items, Splitter

_PLANS_KEPT = 2  # the current epoch and the next, into which batches reach
_COUNTS_KEPT = 8
_POINT = 32  # binary places of passes an epoch and of phases


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """One batch of the global sequence, before anything is read.

    Args:
        position: Place in the endless sequence of global batches.
        epoch: Epoch in which the batch starts.
        bucket: Which of the static shapes it has.
        ids: Rows of the dataset index, or of a mixture's, int64, shape (B,).
        pieces: Which piece of its utterance each crop is taken from, int64, shape (B,); None where none is cut.
    """

    position: int
    epoch: int
    bucket: int
    ids: NDArray[np.int64]
    pieces: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The batches that start in one epoch.

    Args:
        epoch: Which epoch.
        first_position: Global position of the first batch.
        first_places: Place of the epoch's first item in each bucket's endless stream.
        orders: Items in this epoch's order, uint32, one array a bucket.
        buckets: Bucket of each batch, in order.
        numbers: Number of each batch within its bucket's endless stream, in order.
    """

    epoch: int
    first_position: int
    first_places: tuple[int, ...]
    orders: tuple[NDArray[np.uint32], ...]
    buckets: NDArray[np.int16]
    numbers: NDArray[np.int64]

    @property
    def num_batches(self) -> int:
        """Batches that start in this epoch."""
        return len(self.buckets)


class PlannedSequence:
    """The endless sequence of global batches over components.

    Args:
        components: What is mixed.
        passes: Passes that each component makes in an epoch; the sequence keeps 32 binary places of them.
        items: What the components' items are.
        shapes: Crop lengths and batch rows.
        seed: Seeds every permutation.

    Raises:
        ConfigError: No utterance fills the shortest crop.
    """

    def __init__(
        self, components: Sequence[Component], passes: Sequence[float], items: Items, shapes: Shapes, *, seed: int
    ) -> None:
        self.components = tuple(components)
        self.items = items
        self.shapes = shapes
        self.seed = seed
        self.speeds = tuple(max(1, round(speed * 2**_POINT)) for speed in passes)
        self._sizes_CK = np.asarray([component.sizes for component in self.components], dtype=np.int64)
        if not self._sizes_CK.any():
            raise ConfigError("no utterance fills the shortest crop", "lower data.min_crop_s")
        # Python's whole numbers: they do not overflow, however far the run
        self._speed_CK = self._sizes_CK.astype(object) * np.asarray(self.speeds, dtype=object)[:, None]
        phases = [
            [derive_seed(seed, "phase", component.name, bucket) >> (63 - _POINT) for bucket in range(len(shapes.rows))]
            for component in self.components
        ]
        self._phase_CK = np.asarray(phases, dtype=object)
        self._rows_K = np.asarray(shapes.rows, dtype=np.int64)
        self._rate = float((self._speed_CK.sum(0).astype(np.float64) / 2**_POINT / self._rows_K).sum())
        self._epochs: OrderedDict[int, EpochPlan] = OrderedDict()
        self._counts: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._around = (0, 0, 0)  # an epoch, and the positions from which and up to which it reaches

    @property
    def sizes(self) -> tuple[int, ...]:
        """Items of each bucket, over all components."""
        return tuple(int(size) for size in self._sizes_CK.sum(0))

    @property
    def fingerprint(self) -> str:
        """Hash of all that the sequence depends on, beside the data's content."""
        about = [
            {"name": c.name, "sizes": c.sizes, "window_shards": c.window_shards, "speed": speed}
            for c, speed in zip(self.components, self.speeds, strict=True)
        ]
        return hash_json({"shapes": asdict(self.shapes), "seed": self.seed, "components": about})

    def epochs(self, position: int) -> float:
        """Epochs that a number of batches amounts to, as a fraction."""
        return position / self._rate

    def drawn(self, epoch: int) -> NDArray[np.int64]:
        """Items that each component's streams give before an epoch, shape (components, buckets)."""
        if epoch not in self._counts:
            while len(self._counts) >= _COUNTS_KEPT:
                self._counts.popitem(last=False)
            self._counts[epoch] = ((epoch * self._speed_CK + self._phase_CK) >> _POINT).astype(np.int64)
        return self._counts[epoch]

    def first_position(self, epoch: int) -> int:
        """Global batches that start before an epoch."""
        return int((-(-self.drawn(epoch).sum(0) // self._rows_K)).sum())

    def epoch_at(self, position: int) -> int:
        """The epoch in which a global batch starts, by arithmetic alone."""
        epoch, first, after = self._around
        if first <= position < after:
            return epoch
        # Phases and rounding move an epoch's first batch by less than this from where the rate says.
        slack = (self._sizes_CK.size + 1) * 2
        low, high = max(0, int((position - slack) / self._rate) - 1), int((position + slack) / self._rate) + 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.first_position(middle) <= position else (low, middle)
        self._around = (low, self.first_position(low), self.first_position(low + 1))
        return low

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
        place = int(plan.numbers[position - plan.first_position]) * int(self._rows_K[bucket])
        missing = int(self._rows_K[bucket])
        items: list[NDArray[np.uint32]] = []
        epoch = plan.epoch
        while missing:
            here = self.epoch(epoch)
            start = place - here.first_places[bucket]
            items.append(here.orders[bucket][start : start + missing])
            place += len(items[-1])
            missing -= len(items[-1])
            epoch += 1
        rows_B, pieces_B = self.items.rows_and_pieces(np.concatenate(items))
        cut = len(self.items.extra_rows) > 0
        return BatchSpec(position, plan.epoch, bucket, rows_B, pieces_B if cut else None)

    def _make_epoch(self, epoch: int) -> EpochPlan:
        orders = self._orders(epoch)
        first_K, after_K = self.drawn(epoch).sum(0), self.drawn(epoch + 1).sum(0)
        times, buckets, numbers = [], [], []
        for k, (first, after, rows) in enumerate(
            zip(first_K.tolist(), after_K.tolist(), self.shapes.rows, strict=True)
        ):
            numbers_k = np.arange(-(-first // rows), -(-after // rows), dtype=np.int64)
            # Evenly over the epoch, but not in step: every second batch of two alike buckets would be one rank's.
            source = np.random.Philox(derive_seed(self.seed, "interleave", epoch, k))
            draws = source.random_raw(len(numbers_k)).astype(np.float64) / 2**64
            times.append((numbers_k * rows - first + draws * rows) / max(1, after - first))
            buckets.append(np.full(len(numbers_k), k, dtype=np.int16))
            numbers.append(numbers_k)
        by_time = np.argsort(np.concatenate(times), kind="stable")
        return EpochPlan(
            epoch=epoch,
            first_position=self.first_position(epoch),
            first_places=tuple(first_K.tolist()),
            orders=orders,
            buckets=np.concatenate(buckets)[by_time],
            numbers=np.concatenate(numbers)[by_time],
        )

    def _orders(self, epoch: int) -> tuple[NDArray[np.uint32], ...]:
        """Items of each bucket in the epoch's order."""
        first_CK, after_CK = self.drawn(epoch), self.drawn(epoch + 1)
        parts: list[list[NDArray[np.uint32]]] = [[] for _ in self.shapes.rows]
        times: list[list[NDArray[np.float64]]] = [[] for _ in self.shapes.rows]
        for c, component in enumerate(self.components):
            for k, items in enumerate(self._stretch(component, first_CK[c].tolist(), after_CK[c].tolist())):
                parts[k].extend(items)
                if len(self.components) > 1 and items:
                    # item i of the stream comes at the time t at which v n t + phase reaches i + 1
                    ahead = ((int(first_CK[c, k]) + 1) << _POINT) - self._phase_CK[c, k] - epoch * self._speed_CK[c, k]
                    counts = np.arange(after_CK[c, k] - first_CK[c, k], dtype=np.float64)
                    times[k].append((float(ahead) + counts * 2.0**_POINT) / float(self._speed_CK[c, k]))
        empty = np.empty(0, dtype=np.uint32)
        orders = []
        for k in range(len(parts)):
            order = parts[k][0] if len(parts[k]) == 1 else np.concatenate([empty, *parts[k]])
            parts[k].clear()
            # the times of a component ascend, so a stable sort merges
            orders.append(order[np.argsort(np.concatenate(times[k]), kind="stable")] if len(times[k]) > 1 else order)
            times[k].clear()
        return tuple(orders)

    def _stretch(self, component: Component, first_K: list[int], after_K: list[int]) -> list[list[NDArray[np.uint32]]]:
        """A component's items between places of its streams, bucket by bucket, in stretches of one pass each."""
        found: list[list[NDArray[np.uint32]]] = [[] for _ in first_K]
        spans = [
            (k, size, first, after)
            for k, (size, first, after) in enumerate(zip(component.sizes, first_K, after_K, strict=True))
            if after > first
        ]
        if not spans:
            return found
        earliest = min(first // size for _, size, first, _ in spans)
        latest = max((after - 1) // size for _, size, _, after in spans)
        for number in range(earliest, latest + 1):
            windows = component.windows(number, self.seed)
            for k, size, first, after in spans:
                start, end = max(first - number * size, 0), min(after - number * size, size)
                if start < end:
                    order = component.order(k, number, windows, self.seed)
                    # a part of an order is copied, so that the rest need not be kept
                    found[k].append(order if end - start == size else order[start:end].copy())
        return found


class Plan(PlannedSequence):
    """The endless sequence of global batches over one dataset's index.

    Args:
        rows: The index: a structured array with fields ``shard`` and ``samples``, one entry an utterance.
        shapes: Crop lengths and batch rows.
        seed: Seeds every permutation.
        window_shards: Shards whose samples are shuffled together: more mix better, fewer keep reads local.

    Raises:
        ConfigError: No utterance fills the shortest crop, or ``window_shards`` is less than one.
    """

    def __init__(self, rows: NDArray[np.void], shapes: Shapes, *, seed: int, window_shards: int) -> None:
        splitter = Splitter(shapes, window_shards=window_shards, num_rows=len(rows))
        components = splitter.split(rows, "all")
        if not components:
            raise ConfigError("no utterance fills the shortest crop", "lower data.min_crop_s")
        super().__init__(list(components.values()), [1.0], splitter.items(), shapes, seed=seed)
