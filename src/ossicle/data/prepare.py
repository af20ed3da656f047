"""From a corpus to a dataset on disk: shards by a pool of processes, an index a split, and a card.

Every shard is a job with a fingerprint of all that decides its bytes. A finished job leaves a record beside the shards;
a run that is killed and started again redoes only jobs without one, and ends with the same bytes.
"""

import dataclasses
import fcntl
import hashlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ossicle.core.errors import DataError
from ossicle.core.files import hash_json, read_json, write_json
from ossicle.data.card import FORMAT, Record, Summary, read_summary, write_card
from ossicle.data.index import CARD_NAME, DatasetIndex
from ossicle.data.quarantine import Quarantine
from ossicle.data.shards import (
    Member,
    digest_bytes,
    hashed_part,
    naming_full_disk,
    open_shard,
    remove_parts,
    shard_name,
)
from ossicle.data.utterance import Corpus, Source

QUARANTINE_NAME = "quarantine.jsonl"
_RECORDS = ".records"
_LOCK, _WORKERS_LOCK = ".lock", ".workers.lock"
_LOG = logging.getLogger(__name__)
_SAFE_SPLIT = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class _Job:
    split: str
    number: int
    sources: tuple[Source, ...]
    fingerprint: str

    def shard_path(self, output: Path) -> Path:
        return output / self.split / shard_name(self.number)

    def record_path(self, output: Path) -> Path:
        return output / _RECORDS / self.split / f"{self.number:06d}.json"


def prepare(
    corpus: Corpus,
    output: Path,
    *,
    shard_s: float,
    workers: int,
    max_bad_fraction: float,
    audio_format: Literal["FLAC"] = "FLAC",
) -> Summary:
    """Write a corpus as shards with an index; what is finished already is kept.

    Two processes that prepare one directory take turns, and the second finds the work done.

    Args:
        corpus: What to prepare.
        output: The dataset's directory, made where it is missing.
        shard_s: About how many seconds of audio go to a shard.
        workers: Processes that load and encode; 1 works in this process.
        max_bad_fraction: Fraction of inputs that may be bad before the run stops.
        audio_format: How audio is encoded.

    Raises:
        DataError: The corpus is empty, too much of it is bad, the output holds another dataset, or the disk is full.
    """
    jobs = _plan(corpus, shard_s, audio_format)
    fingerprint = hash_json([job.fingerprint for job in jobs])
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{output} cannot be made: {error}", "name another output") from error
    with _only_one(output):
        _wait_for_orphans(output)
        _refuse_other(output, fingerprint)
        _sweep(output, jobs)
        pending = [job for job in jobs if _finished(job, output) is None]
        if not pending and (output / CARD_NAME).exists():
            _LOG.info("%s is complete", output)
            return read_summary(output)
        (output / CARD_NAME).unlink(missing_ok=True)
        (output / QUARANTINE_NAME).unlink(missing_ok=True)
        _LOG.info("%d of %d shards are to be written to %s", len(pending), len(jobs), output)
        records = _run(corpus, jobs, output, workers, Quarantine(output / QUARANTINE_NAME, max_bad_fraction))
        with naming_full_disk(output):
            return write_card(output, corpus.name, audio_format, fingerprint, records)


def verify(output: Path) -> int:
    """Read every utterance of a dataset again and compare it with the digest that was written.

    Returns:
        How many utterances were read.

    Raises:
        DataError: Some differ; the first ones are named.
    """
    damaged: list[str] = []
    total = 0
    for split in read_summary(output).splits:
        index = DatasetIndex.load(output, split)
        total += index.num_utterances
        damaged.extend(_damaged(index))
    if damaged:
        problem = f"{len(damaged)} parts of {output} differ from what was written: {', '.join(damaged[:10])}"
        raise DataError(problem, f"delete their shards and {output / CARD_NAME}, then prepare again")
    return total


def _damaged(index: DatasetIndex) -> Iterator[str]:
    """Name every utterance whose audio differs, and every shard whose metadata does."""
    entries = read_json(index.path / CARD_NAME)["splits"][index.split]["shards"]
    for shard, entry in enumerate(entries):
        content = hashlib.blake2b(digest_size=16)
        for row in np.flatnonzero(index.rows["shard"] == shard).tolist():
            meta, digest = index.read_meta_bytes(row), int(index.rows[row]["digest"])
            content.update(hashed_part(digest, meta))
            if digest_bytes(index.read_audio(row)) != digest:
                yield f"the audio of {index.split} row {row} in {entry['name']}"
        if content.hexdigest() != entry["content_hash"]:
            yield f"the metadata in {index.split}/{entry['name']}"


def _plan(corpus: Corpus, shard_s: float, audio_format: str) -> list[_Job]:
    splits: dict[str, list[list[Source]]] = {}
    filled: dict[str, float] = {}
    seen: set[str] = set()
    for source in corpus.sources():
        if source.name in seen:
            problem = f"the corpus {corpus.name} names two sources {source.name!r}"
            raise DataError(problem, "give every utterance its own name")
        if not _SAFE_SPLIT.fullmatch(source.split):
            problem = f"{source.name} belongs to the split {source.split!r}, which is no folder name"
            raise DataError(problem, "name splits with letters, digits, - and _")
        seen.add(source.name)
        shards = splits.setdefault(source.split, [])
        if not shards or filled[source.split] >= shard_s:
            shards.append([])
            filled[source.split] = 0.0
        shards[-1].append(source)
        filled[source.split] += source.seconds
    if not splits:
        raise DataError(f"the corpus {corpus.name} has no audio", "point it at a folder with audio files")
    settings = {"format": FORMAT, "corpus": corpus.name, "audio_format": audio_format}
    return [
        _Job(split, number, tuple(sources), _fingerprint(settings, split, number, sources))
        for split, shards in splits.items()
        for number, sources in enumerate(shards)
    ]


def _fingerprint(settings: Mapping[str, object], split: str, number: int, sources: Sequence[Source]) -> str:
    listed = [dataclasses.asdict(source) for source in sources]
    return hash_json({**settings, "split": split, "number": number, "sources": listed}, length=32)


@contextmanager
def _only_one(output: Path) -> Generator[None]:
    """Hold the directory's lock, and wait for it where another process holds it."""
    with (output / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("another process prepares %s: waiting for it", output)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _refuse_other(output: Path, fingerprint: str) -> None:
    if not (output / CARD_NAME).exists():
        return
    try:
        found = read_json(output / CARD_NAME)["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = "delete it and prepare again: good shards are kept"
        raise DataError(f"{output / CARD_NAME} cannot be read: {error}", mend) from error
    if found != fingerprint:
        problem = f"{output} holds a dataset that was prepared from other sources or settings"
        mend = f"name another output, or delete {output / CARD_NAME}: shards that stay the same are then kept"
        raise DataError(problem, mend)


def _sweep(output: Path, jobs: Iterable[_Job]) -> None:
    """Remove what killed writers left, and shards of an earlier plan that this one does not have."""
    planned = {job.record_path(output) for job in jobs}
    for record in (output / _RECORDS).glob("*/*.json"):
        if record not in planned:
            (output / record.parent.name / shard_name(int(record.stem))).unlink(missing_ok=True)
            record.unlink()
    for folder in {output, *(path.parent for path in planned), *(output / job.split for job in jobs)}:
        remove_parts(folder)


def _finished(job: _Job, output: Path) -> Record | None:
    """The record of a job that is done: of this fingerprint, with a shard of the size that was written."""
    try:
        value = read_json(job.record_path(output))
        if value["fingerprint"] != job.fingerprint:
            return None
        members = tuple(Member(*member) for member in value["members"])
        bad = tuple((str(name), str(reason)) for name, reason in value["bad"])
        record = Record(job.split, job.number, value["bytes"], value["content_hash"], members, bad)
        whole = not members or job.shard_path(output).stat().st_size == record.bytes
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s is damaged (%s): its shard is written again", job.record_path(output), error)
        return None
    return record if whole else None


def _run(corpus: Corpus, jobs: list[_Job], output: Path, workers: int, quarantine: Quarantine) -> list[Record]:
    records: list[Record] = []
    with ExitStack() as stack:
        results = _results(stack, corpus, jobs, output, workers)
        for job in jobs:
            record = _finished(job, output) or results(job)
            quarantine.ok(len(record.members))
            for name, reason in record.bad:
                quarantine.add(name, reason)
            records.append(record)
            _LOG.info("shard %d of %d: %s, %d utterances", len(records), len(jobs), job.split, len(record.members))
    if not any(record.members for record in records):
        problem = f"nothing in the corpus {corpus.name} can be used: all {quarantine.num_bad} inputs are bad"
        raise DataError(problem, f"read the reasons in {output / QUARANTINE_NAME}")
    return records


def _results(
    stack: ExitStack, corpus: Corpus, jobs: list[_Job], output: Path, workers: int
) -> Callable[[_Job], Record]:
    """Start the pending jobs, and return what waits for the record of one."""
    pending = [job for job in jobs if _finished(job, output) is None]
    if workers <= 1 or len(pending) <= 1:
        return lambda job: write_shard(corpus, job, output)
    # workers start from a server without threads that has imported all: a fork of this process, which may run threads,
    # can hang, and to import anew in every worker takes seconds each
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, type(corpus).__module__])
    num_workers = min(workers, len(pending))
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(corpus, output))
    stack.callback(pool.shutdown, cancel_futures=True)
    futures = {(job.split, job.number): pool.submit(_work, job, output) for job in pending}

    def wait(job: _Job) -> Record:
        try:
            return futures[job.split, job.number].result()
        except BrokenProcessPool as error:
            problem = "a process that prepared a shard died; it may have run out of memory"
            mend = "run the same command again, with fewer workers: finished shards are kept"
            raise DataError(problem, mend) from error

    return wait


_corpora: list[Corpus] = []
"""The corpus of a worker process: sent once, not with every job."""


def _start_worker(corpus: Corpus, output: Path) -> None:
    _corpora[:] = [corpus]
    lock = os.open(output / _WORKERS_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)  # held until this process ends
    fcntl.flock(lock, fcntl.LOCK_SH)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End this process when its parent does: the pool would leave it waiting for ever."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _wait_for_orphans(output: Path) -> None:
    """Wait until no worker of a killed run writes here any more."""
    with (output / _WORKERS_LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def _work(job: _Job, output: Path) -> Record:
    return write_shard(_corpora[0], job, output)


def write_shard(corpus: Corpus, job: _Job, output: Path) -> Record:
    """Load a job's sources, write the good ones to its shard, and leave a record that it is done."""
    path = job.shard_path(output)
    bad: list[tuple[str, str]] = []
    writer = None
    with ExitStack() as stack:
        for source in job.sources:
            try:
                for sample in corpus.samples(source):
                    if writer is None:  # a job without a good source leaves no empty shard
                        writer = stack.enter_context(open_shard(path))
                    writer.write(sample)
            except DataError as error:
                bad.append((source.name, error.problem))
    members = () if writer is None else tuple(writer.members)
    size = path.stat().st_size if writer else 0
    content_hash = writer.content_hash if writer else ""
    value = {
        "fingerprint": job.fingerprint,
        "bytes": size,
        "content_hash": content_hash,
        "bad": bad,
        "members": [dataclasses.astuple(member) for member in members],
    }
    with naming_full_disk(job.record_path(output)):
        write_json(job.record_path(output), value)
    return Record(job.split, job.number, size, content_hash, members, tuple(bad))
