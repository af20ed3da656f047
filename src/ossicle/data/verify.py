"""A prepared dataset read again, and every utterance held against the digest that was written."""

import hashlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby, islice
from pathlib import Path

from ossicle.core.errors import DataError
from ossicle.core.files import read_json
from ossicle.data.index import CARD_NAME, DatasetIndex
from ossicle.data.shards import digest_bytes, hashed_part

_NAMED = 10


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard to be read: its name and hash by the card, and its first row and the one after its last."""

    split: str
    name: str
    content_hash: str
    start: int
    stop: int


def verify(output: Path, workers: int = 1, part: int = 0, parts: int = 1) -> int:
    """Read every utterance of a dataset again and compare it with the digest that was written.

    Args:
        output: The dataset's directory.
        workers: Processes that read; 1 works in this process.
        part: This task's number, from 0: it reads every ``parts``-th shard.
        parts: How many tasks share the work.

    Returns:
        How many utterances were read.

    Raises:
        DataError: Some differ; the first ones are named.
    """
    total = num_damaged = 0
    named: list[str] = []
    for shard, damaged in _results(islice(_shards(output), part, None, parts), output, workers):
        total += shard.stop - shard.start
        num_damaged += len(damaged)
        named.extend(damaged[: _NAMED - len(named)])
    if num_damaged:
        problem = f"{num_damaged} parts of {output} differ from what was written: {', '.join(named)}"
        raise DataError(problem, f"delete their shards and {output / CARD_NAME}, then prepare again")
    return total


def _shards(output: Path) -> Iterator[_Shard]:
    try:
        splits = read_json(output / CARD_NAME)["splits"]
        for split, entry in splits.items():
            ends = accumulate((shard["num_utterances"] for shard in entry["shards"]), initial=0)
            start = next(ends)
            for shard, end in zip(entry["shards"], ends, strict=True):
                yield _Shard(split, shard["name"], shard["content_hash"], start, end)
                start = end
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = f"ossicle prepare corpus=... output={output}"
        raise DataError(f"{output} holds no dataset that can be read: {error!r}", mend) from error


def _results(shards: Iterator[_Shard], output: Path, workers: int) -> Iterator[tuple[_Shard, list[str]]]:
    if workers <= 1:
        for split, group in groupby(shards, key=lambda shard: shard.split):
            index = DatasetIndex.load(output, split)
            for shard in group:
                yield shard, _damaged(index, shard)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        running: list[tuple[_Shard, Future[list[str]]]] = []
        while True:
            fresh = islice(shards, 4 * workers - len(running))
            running.extend((shard, executor.submit(_damaged_of, output, shard)) for shard in fresh)
            if not running:
                return
            shard, future = running.pop(0)
            try:
                yield shard, future.result()
            except BrokenProcessPool as error:
                problem = "a process that verified shards died; it may have run out of memory"
                raise DataError(problem, "run the same command again, with fewer workers") from error


@cache
def _opened(output: Path, split: str) -> DatasetIndex:
    """A split, opened once in a worker process."""
    return DatasetIndex.load(output, split)


def _damaged_of(output: Path, shard: _Shard) -> list[str]:
    return _damaged(_opened(output, shard.split), shard)


def _damaged(index: DatasetIndex, shard: _Shard) -> list[str]:
    """Name every utterance of a shard whose audio differs, and the shard if its metadata does."""
    found: list[str] = []
    content = hashlib.blake2b(digest_size=16)
    for row in range(shard.start, shard.stop):
        meta, digest = index.read_meta_bytes(row), int(index.rows[row]["digest"])
        content.update(hashed_part(digest, meta))
        if digest_bytes(index.read_audio(row)) != digest:
            found.append(f"the audio of {shard.split} row {row} in {shard.name}")
    if content.hexdigest() != shard.content_hash:
        found.append(f"the metadata in {shard.split}/{shard.name}")
    return found
