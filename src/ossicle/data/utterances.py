"""Whole utterances one after another: what labels and probes read."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ossicle.core.errors import DataError
from ossicle.core.seeds import numpy_generator
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.data.quarantine import Quarantine
from ossicle.data.utterance import Utterance

_AHEAD = 8  # utterances decoded ahead of their use
_MOST_PADDING = 0.2  # of the longest row of a batch

Wave = NDArray[np.float32]


def iterate_utterances(
    index: DatasetIndex,
    rank: int = 0,
    world: int = 1,
    shuffle_seed: int | None = None,
    quarantine: Quarantine | None = None,
) -> Iterator[tuple[int, Utterance, NDArray[np.float32]]]:
    """Go through a split once.

    Args:
        index: The split.
        rank: This process's place among those that share the work.
        world: How many processes share the work: each takes every world-th utterance.
        shuffle_seed: Seeds the order; None keeps the index's.
        quarantine: Takes the utterances that cannot be read, which are then left out; None lets the error stop.

    Yields:
        Row of the index, what is known of the utterance, and its samples in [-1, 1], float32, shape (S,).
    """
    rows_N = np.arange(index.num_utterances)
    if shuffle_seed is not None:
        rows_N = numpy_generator(shuffle_seed, "utterances").permutation(rows_N)
    for row, wave_S in decode_rows(index, rows_N[rank::world].tolist(), quarantine):
        if wave_S is not None:
            yield row, index.read_meta(row), wave_S


def decode_rows(
    index: DatasetIndex,
    rows: Iterable[int],
    quarantine: Quarantine | None = None,
    *,
    ahead: int = _AHEAD,
    threads: int = 1,
) -> Iterator[tuple[int, NDArray[np.float32] | None]]:
    """Decode whole utterances in a given order, a few ahead on other threads.

    Args:
        index: The split.
        rows: Rows of the index.
        quarantine: Takes the utterances that cannot be read; None lets the error stop.
        ahead: How many are decoded ahead of their use.
        threads: Threads that decode: libsndfile leaves the interpreter to others.

    Yields:
        Row, and its samples, float32, shape (S,), or None where it could not be read.
    """
    with ThreadPoolExecutor(threads) as decoder:
        waiting: deque[tuple[int, Future[NDArray[np.float32]]]] = deque()
        try:
            for row in rows:
                waiting.append((row, _submit(decoder, index, row)))
                if len(waiting) > ahead:
                    yield _result(*waiting.popleft(), index, quarantine)
            while waiting:
                yield _result(*waiting.popleft(), index, quarantine)
        finally:
            for _, future in waiting:
                future.cancel()


def length_batches(index: DatasetIndex, rows: Sequence[int], batch_s: float) -> list[list[int]]:
    """Whole utterances in batches of like lengths, longest first: at most a fifth of a row is padding.

    Args:
        index: The split.
        rows: Rows of the index.
        batch_s: Audio in a padded batch, in seconds, at most; a longer utterance is a batch of its own.
    """
    room = batch_s * index.rate_hz
    samples = index.rows["samples"]
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(rows, key=lambda row: (-int(samples[row]), row)):
        full = not batches or (len(batches[-1]) + 1) * longest > room
        if full or samples[row] < (1 - _MOST_PADDING) * longest:
            batches.append([])
            longest = int(samples[row])
        batches[-1].append(row)
    return batches


def decode_batches(
    index: DatasetIndex, batches: Sequence[Sequence[int]], quarantine: Quarantine | None = None, *, threads: int = 1
) -> Iterator[list[tuple[int, Wave]]]:
    """Decode batches of whole utterances, the next one while the last is used.

    Args:
        index: The split.
        batches: Rows of the index by batch.
        quarantine: Takes the utterances that cannot be read, which their batch then lacks; None lets the error stop.
        threads: Threads that decode.

    Yields:
        Rows with their samples, float32, shape (S,).
    """
    ahead = max((len(batch) for batch in batches), default=0)
    rows = (row for batch in batches for row in batch)
    found = decode_rows(index, rows, quarantine, ahead=max(ahead, _AHEAD), threads=threads)
    for batch in batches:
        decoded = [next(found) for _ in batch]
        yield [(row, wave_S) for row, wave_S in decoded if wave_S is not None]


def _submit(decoder: ThreadPoolExecutor, index: DatasetIndex, row: int) -> Future[NDArray[np.float32]]:
    # the index keeps a few files open and closes others: it is read on this thread alone
    try:
        data = index.read_audio(row)
    except DataError as error:
        failed: Future[NDArray[np.float32]] = Future()
        failed.set_exception(error)
        return failed
    return decoder.submit(decode, data)


def _result(
    row: int, future: Future[NDArray[np.float32]], index: DatasetIndex, quarantine: Quarantine | None
) -> tuple[int, NDArray[np.float32] | None]:
    try:
        wave_S = future.result()
    except DataError as error:
        if quarantine is None:
            raise
        quarantine.add(name_of(index, row), error.problem)
        return row, None
    if quarantine is not None:
        quarantine.ok()
    return row, wave_S


def name_of(index: DatasetIndex, row: int) -> str:
    """How a bad utterance is called: its shard, its row, and its id where that can still be read."""
    shard = index.shard_paths[int(index.rows[row]["shard"])].name
    try:
        return f"{index.split}/{shard} row {row} ({index.read_meta(row).id})"
    except DataError:
        return f"{index.split}/{shard} row {row}"
