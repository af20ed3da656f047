"""What is mixed: utterances of one source and language, in endless passes, each a permutation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ossicle.core.errors import ConfigError
from ossicle.core.seeds import derive_seed
from ossicle.data.buckets import CHUNK, Shapes

_MOST_ITEMS = 2**32


@dataclass(frozen=True, slots=True)
class Items:
    """What a plan counts: each utterance's first piece by its row, and further pieces of long ones after all rows.

    Args:
        num_rows: Utterances of all sources.
        extra_rows: Rows of the further pieces, uint32.
        extra_pieces: Which piece each of them is, from 1 on, uint32.
    """

    num_rows: int
    extra_rows: NDArray[np.uint32]
    extra_pieces: NDArray[np.uint32]

    def rows_and_pieces(self, items_B: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and piece of each item."""
        rows_B = items_B.astype(np.int64)
        pieces_B = np.zeros(len(rows_B), dtype=np.int64)
        extra_B = np.flatnonzero(rows_B >= self.num_rows)
        places = rows_B[extra_B] - self.num_rows
        rows_B[extra_B] = self.extra_rows[places]
        pieces_B[extra_B] = self.extra_pieces[places]
        return rows_B, pieces_B


class Component:
    """The items of one source, or of one language of it, by bucket; passes over them in an order of their own.

    Args:
        name: Seeds the orders; two components of a mixture have two names.
        items: Items of each bucket, uint32.
        shards: Shard of each item, of each bucket.
        window_shards: Shards whose items are shuffled together: more mix better, fewer keep reads local.
    """

    def __init__(
        self,
        name: str,
        items: Sequence[NDArray[np.uint32]],
        shards: Sequence[NDArray[np.unsignedinteger]],
        *,
        window_shards: int,
    ) -> None:
        if window_shards < 1:
            raise ConfigError(f"data.window_shards={window_shards} holds no shard", "give at least 1")
        self.name = name
        self.window_shards = window_shards
        self.items = tuple(items)
        # windows are of shards that hold something: a rare language lies in few
        present = np.zeros(max((int(s.max(initial=0)) for s in shards), default=0) + 1, dtype=bool)
        for shards_N in shards:
            present[shards_N] = True
        self.num_shards = int(present.sum())
        numbers = (np.cumsum(present) - 1).clip(min=0).astype(np.min_scalar_type(max(0, self.num_shards - 1)))
        self._shards = tuple(numbers[shards_N] for shards_N in shards)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Items of each bucket."""
        return tuple(len(items_N) for items_N in self.items)

    @property
    def nbytes(self) -> int:
        """Memory that this takes."""
        return sum(array.nbytes for array in (*self.items, *self._shards))

    def windows(self, number: int, seed: int) -> NDArray[np.uint64]:
        """Window of each shard in one pass: shards are permuted, and neighbours make a window."""
        raw = np.random.Philox(derive_seed(seed, "shards", self.name, number)).random_raw(self.num_shards)
        windows = np.empty(self.num_shards, dtype=np.uint64)
        windows[raw.argsort(kind="stable")] = np.arange(self.num_shards) // self.window_shards
        return windows

    def order(self, bucket: int, number: int, windows: NDArray[np.uint64], seed: int) -> NDArray[np.uint32]:
        """A bucket's items in the order of one pass: window by window, shuffled inside each.

        Args:
            bucket: Which bucket.
            number: Which pass.
            windows: The pass's windows, of :meth:`windows`.
            seed: The run's seed.
        """
        shards_N = self._shards[bucket]
        # One sort of unique 64-bit keys, window | random | place: values are sorted faster than places, and being
        # unique they come out alike on every machine. Philox's raw words are stable from one numpy to the next.
        place_bits = max(1, (len(shards_N) - 1).bit_length())
        window_bits = int(windows.max(initial=0)).bit_length()
        source = np.random.Philox(derive_seed(seed, "items", self.name, bucket, number))
        keys = source.random_raw(len(shards_N))
        for start in range(0, len(keys), CHUNK):
            part = keys[start : start + CHUNK]
            part >>= np.uint64(window_bits)
            part >>= np.uint64(place_bits)
            part <<= np.uint64(place_bits)
            part |= np.arange(start, start + len(part), dtype=np.uint64)
            if window_bits:
                part |= windows[shards_N[start : start + CHUNK]] << np.uint64(64 - window_bits)
        keys.sort()
        keys &= np.uint64((1 << place_bits) - 1)
        return self.items[bucket][keys]


class Splitter:
    """Cuts the rows of sources into components; what it reads of an index is read once, a stretch at a time.

    Args:
        shapes: Crop lengths and batch rows.
        window_shards: Shards whose items are shuffled together.
        num_rows: Utterances of all sources.
    """

    def __init__(self, shapes: Shapes, *, window_shards: int, num_rows: int) -> None:
        self.shapes = shapes
        self.window_shards = window_shards
        self.num_rows = num_rows
        self._extra_rows: list[NDArray[np.uint32]] = []
        self._extra_pieces: list[NDArray[np.uint32]] = []
        self._num_items = num_rows

    def split(
        self, rows: NDArray[np.void], name: str, *, offset: int = 0, languages: Sequence[str] = ()
    ) -> dict[str, Component]:
        """The components of a source by language, or one under the empty name.

        Args:
            rows: The source's index: a structured array with fields ``shard`` and ``samples``, and ``language`` where
                languages are split.
            name: The source's name.
            offset: Number of its first row among all sources.
            languages: The index's languages, in the order of its column, or none to leave them together.

        Raises:
            ConfigError: There are more pieces than 32 bits can count.
        """
        num_buckets = len(self.shapes.lengths)
        groups = max(1, len(languages)) * num_buckets
        none = np.iinfo(np.uint16).max  # 16 bits are sorted by their digits
        if groups >= none:
            raise ConfigError(
                f"{len(languages)} languages in {num_buckets} shapes are too many", "lower data.num_shapes"
            )
        group_N: NDArray[np.uint16] = np.full(len(rows), none, dtype=np.uint16)
        extras: list[tuple[NDArray[np.uint32], NDArray[np.uint32]]] = []
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            samples_N = part["samples"].astype(np.int64)
            bucket_N = self.shapes.assign(samples_N)
            kept_N = bucket_N >= 0
            if languages:
                bucket_N = bucket_N.astype(np.int32) + part["language"].astype(np.int32) * num_buckets
            group_N[start : start + CHUNK][kept_N] = bucket_N[kept_N]
            extras.append(self._extra(np.where(kept_N, self.shapes.num_pieces(samples_N), 1), start))
        extra_rows = np.concatenate([row_N for row_N, _ in extras])
        extra_items = np.arange(self._num_items, self._num_items + len(extra_rows))
        self._num_items += len(extra_rows)
        self._extra_rows.append(extra_rows + np.uint32(offset))
        self._extra_pieces.extend(piece_N for _, piece_N in extras)
        if self._num_items > _MOST_ITEMS:
            raise ConfigError(f"{self._num_items} pieces of utterances are too many", "raise data.max_cut")
        parts = _Parts(group_N, extra_rows, groups, np.min_scalar_type(int(rows["shard"].max(initial=0))))
        for start in range(0, len(rows), CHUNK):
            here = np.arange(start, min(start + CHUNK, len(rows)))
            parts.add(here + offset, rows["shard"][start : start + CHUNK], group_N[here])
        parts.add(extra_items, rows["shard"][extra_rows], group_N[extra_rows])
        found: dict[str, Component] = {}
        for number, language in enumerate(languages or ("",)):
            of_language = slice(number * num_buckets, (number + 1) * num_buckets)
            if any(map(len, parts.items[of_language])):
                found[language] = Component(
                    f"{name}/{language}" if language else name,
                    parts.items[of_language],
                    parts.shards[of_language],
                    window_shards=self.window_shards,
                )
        return found

    def items(self) -> Items:
        """The items of all sources that were split."""
        empty = np.empty(0, dtype=np.uint32)
        return Items(
            self.num_rows,
            np.concatenate([empty, *self._extra_rows]),
            np.concatenate([empty, *self._extra_pieces]),
        )

    @staticmethod
    def _extra(count_N: NDArray[np.int64], start: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Rows of a stretch's further pieces, and which pieces they are."""
        row_N = np.repeat(np.arange(len(count_N)), count_N - 1)
        before_N = np.cumsum(count_N - 1) - (count_N - 1)
        piece_N = np.arange(len(row_N)) - before_N[row_N] + 1
        return (row_N + start).astype(np.uint32), piece_N.astype(np.uint32)


class _Parts:
    """Arrays of items and shards by group, made at once in their final sizes: growing ones would leave holes behind.

    Args:
        group_N: Group of each row.
        extra_rows: Rows of further pieces.
        groups: How many groups there are; higher numbers are left out.
        shard_type: Type of shard numbers.
    """

    def __init__(
        self, group_N: NDArray[np.uint16], extra_rows: NDArray[np.uint32], groups: int, shard_type: np.dtype
    ) -> None:
        counts = np.bincount(group_N[extra_rows], minlength=groups)[:groups]
        for start in range(0, len(group_N), CHUNK):
            counts += np.bincount(group_N[start : start + CHUNK], minlength=groups)[:groups]
        self.items = [np.empty(count, dtype=np.uint32) for count in counts.tolist()]
        self.shards: list[NDArray[np.unsignedinteger]] = [
            np.empty(count, dtype=shard_type) for count in counts.tolist()
        ]
        self._filled = [0] * groups

    def add(
        self, items_N: NDArray[np.int64], shard_N: NDArray[np.unsignedinteger], group_N: NDArray[np.uint16]
    ) -> None:
        """Append items to their groups, in their order."""
        order = np.argsort(group_N, kind="stable")
        ends = np.cumsum(np.bincount(group_N, minlength=len(self.items))[: len(self.items)])
        begins = np.concatenate([[0], ends[:-1]])
        for group in np.flatnonzero(ends > begins).tolist():
            chosen = order[begins[group] : ends[group]]
            filled = self._filled[group]
            self.items[group][filled : filled + len(chosen)] = items_N[chosen]
            self.shards[group][filled : filled + len(chosen)] = shard_N[chosen]
            self._filled[group] += len(chosen)
