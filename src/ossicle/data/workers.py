"""Jobs become shards: one after another, or by a pool of processes, some of which may die."""

import logging
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO

from ossicle.core.errors import DataError
from ossicle.data.claims import Claims
from ossicle.data.codecs import Codec, codec_named
from ossicle.data.jobs import Job
from ossicle.data.records import Record, read_record
from ossicle.data.shards import naming_full_disk, open_shard
from ossicle.data.utterance import Corpus, Source

LOCK = ".lock"
_LOG = logging.getLogger(__name__)
_MAX_DEADLY = 3  # sources of one shard that kill their process: more of them, and the cause lies elsewhere

Work = tuple[Job, tuple[Source, ...]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job.

    Args:
        job: The job.
        num_good: Utterances written.
        bad: Name and reason of each source that was left out.
        claimed: Another process is at it: nothing was done here.
    """

    job: Job
    num_good: int = 0
    bad: tuple[tuple[str, str], ...] = ()
    claimed: bool = False


def write_shard(
    corpus: Corpus,
    work: Work,
    output: Path,
    codec: Codec,
    *,
    skip: Mapping[int, str] | None = None,
    trace: IO[bytes] | None = None,
) -> Record:
    """Load a job's sources, write the good ones to its shard, and leave a record that it is done.

    Args:
        corpus: Loads the sources.
        work: The job and its sources.
        output: The dataset's directory.
        codec: How audio is stored.
        skip: Sources, by their place in the job, that are not to be loaded, with the reason.
        trace: A file that says at every moment which source is loaded.
    """
    job, sources = work
    path = job.shard_path(output)
    bad: list[tuple[str, str]] = []
    writer = None
    with ExitStack() as stack:
        for place, source in enumerate(sources):
            if skip and place in skip:
                bad.append((source.name, skip[place]))
                continue
            if trace is not None:
                os.pwrite(trace.fileno(), place.to_bytes(8, "little"), 0)
            try:
                for sample in corpus.samples(source):
                    if writer is None:  # a job without a good source leaves no empty shard
                        writer = stack.enter_context(open_shard(path, codec))
                    writer.write(sample)
            except DataError as error:
                bad.append((source.name, error.problem))
    if writer is None:
        path.unlink(missing_ok=True)  # of an earlier plan
        record = Record(job.split, job.number, 0, "", (), tuple(bad))
    else:
        size = path.stat().st_size
        record = Record(job.split, job.number, size, writer.content_hash, tuple(writer.members), tuple(bad))
    with naming_full_disk(job.record_path(output)):
        record.write(job, output)
    return record


def run_jobs(
    corpus: Corpus, works: Iterable[Work], output: Path, codec: Codec, *, workers: int, patient: bool
) -> Generator[Outcome]:
    """Carry out jobs; a job that another process has finished meanwhile is not done again.

    Args:
        corpus: What loads their sources.
        works: Jobs with their sources; no more than two a worker are taken from it at a time.
        output: The dataset's directory.
        codec: How audio is stored.
        workers: Processes; 1 works in this process.
        patient: Whether to wait for a job that another process has claimed, or to pass it over.

    Yields:
        What came of each job, in the order in which they end.

    Raises:
        DataError: The disk is full, or processes die for no reason that can be found.
    """
    if workers > 1:
        yield from _Pool(corpus, output, codec, workers, patient=patient).run(iter(works))
        return
    with Claims(output / LOCK) as claims:
        for work in works:
            yield _claimed_work(_Place(corpus, output, codec, claims), work, patient=patient)


@dataclass(frozen=True, slots=True)
class _Place:
    """What a process needs for any job."""

    corpus: Corpus
    output: Path
    codec: Codec
    claims: Claims


_places: list[_Place] = []
"""Of a worker process: sent once, not with every job."""


def _claimed_work(
    place: _Place, work: Work, *, patient: bool, skip: Mapping[int, str] | None = None, trace: str | None = None
) -> Outcome:
    job = work[0]
    with ExitStack() as stack:
        if not stack.enter_context(place.claims.hold(job.place, wait=patient)):
            return Outcome(job, claimed=True)
        record = read_record(job, place.output)
        if record is None:
            file = None if trace is None else stack.enter_context(Path(trace).open("r+b"))
            try:
                record = write_shard(place.corpus, work, place.output, place.codec, skip=skip, trace=file)
            except FileNotFoundError:  # another process finished first and swept the half-written file away
                record = read_record(job, place.output)
                if record is None:
                    raise
        return Outcome(job, len(record.members), record.bad)


def _start_worker(corpus: Corpus, output: Path, codec: str) -> None:
    _places[:] = [_Place(corpus, output, codec_named(codec), Claims(output / LOCK))]
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End this process when its parent does: the pool would leave it waiting for ever."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _work(work: Work, patient: bool, skip: Mapping[int, str] | None = None, trace: str | None = None) -> Outcome:
    return _claimed_work(_places[0], work, patient=patient, skip=skip, trace=trace)


class _Pool:
    """Processes that carry out jobs; where one dies, its jobs are tried again one at a time."""

    def __init__(self, corpus: Corpus, output: Path, codec: Codec, workers: int, *, patient: bool) -> None:
        self.corpus = corpus
        self.output = output
        self.codec = codec
        self.workers = workers
        self.patient = patient

    def run(self, works: Iterator[Work]) -> Iterator[Outcome]:
        """Carry out all jobs."""
        while True:
            lost: list[Work] = []
            yield from self._until_a_death(works, lost)
            if not lost:
                return
            names = ", ".join(job.name for job, _ in lost)
            _LOG.warning("a process died, perhaps for want of memory: one at a time now: %s", names)
            for work in lost:
                yield self._alone(work)

    def _executor(self, workers: int) -> ProcessPoolExecutor:
        # workers start from a server without threads that has imported all: a fork of this process, which may run
        # threads, can hang, and to import anew in every worker takes seconds each
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, type(self.corpus).__module__])
        arguments = (self.corpus, self.output, self.codec.name)
        return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=arguments)

    def _until_a_death(self, works: Iterator[Work], lost: list[Work]) -> Iterator[Outcome]:
        """Carry out jobs until none is left or a process dies, whose unfinished jobs are put into ``lost``."""
        first = next(works, None)
        if first is None:  # where nothing is to be done, no process is started
            return
        works = chain([first], works)
        running: dict[Future[Outcome], Work] = {}
        executor = self._executor(self.workers)
        try:
            while True:
                for work in islice(works, 0 if lost else 2 * self.workers - len(running)):
                    try:
                        running[executor.submit(_work, work, self.patient)] = work
                    except BrokenProcessPool:
                        lost.append(work)
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    work = running.pop(future)
                    try:
                        outcome = future.result()
                    except BrokenProcessPool:
                        lost.append(work)
                    else:
                        yield outcome
        finally:
            executor.shutdown(cancel_futures=True)

    def _alone(self, work: Work) -> Outcome:
        """Carry out a job while nothing else runs; a source that kills its process again is left out."""
        job, sources = work
        skip: dict[int, str] = {}
        while True:
            with tempfile.NamedTemporaryFile() as trace, self._executor(1) as executor:
                trace.write(b"\xff" * 8)
                trace.flush()
                try:
                    return executor.submit(_work, work, True, skip, trace.name).result()
                except BrokenProcessPool as error:
                    trace.seek(0)
                    place = int.from_bytes(trace.read(8), "little")
                    if place >= len(sources) or place in skip or len(skip) == _MAX_DEADLY:
                        problem = f"the process that prepared {job.name} died again and again"
                        mend = "give it more memory, or name fewer workers, and run the same command again: "
                        raise DataError(problem, f"{mend}finished shards are kept") from error
                    skip[place] = "the process that read it died twice; it may need more memory than there is"
                    _LOG.warning("%s is left out of %s: %s", sources[place].name, job.name, skip[place])
