"""From a corpus to a dataset on disk: shards by processes on one machine or many, an index a split, and a card.

Every shard is a job with a fingerprint of all that decides its bytes. A finished job leaves a record beside the shards;
a run that is killed and started again redoes only jobs without one, and ends with the same bytes. Tasks that share the
directory take jobs by turns, and whichever finds all jobs finished writes the card. Claims spare them double work where
files can be locked; without, two tasks may write one shard, with the same bytes, each in one step.
"""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ossicle.core.errors import ConfigError, DataError
from ossicle.core.files import hash_json, read_json, write_json
from ossicle.data.card import QUARANTINE_NAME, Summary, read_summary, write_card
from ossicle.data.claims import Claims
from ossicle.data.codecs import Codec, codec_named
from ossicle.data.index import CARD_NAME
from ossicle.data.jobs import FORMAT, PLANS, RECORDS, Job, JobPlan, make_plan
from ossicle.data.quarantine import Quarantine
from ossicle.data.records import Record, read_record
from ossicle.data.shards import naming_full_disk, remove_parts, shard_name
from ossicle.data.utterance import Corpus
from ossicle.data.verify import verify
from ossicle.data.workers import LOCK, run_jobs

__all__ = ["Preparation", "Share", "prepare", "verify"]

ARRAY_NAME = "array.json"
_PLAN_CLAIM, _CARD_CLAIM = 2**40, 2**40 + 1  # above any job's number
_STALE_S = 3600.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Share:
    """What one task of several does: every ``parts``-th job.

    Args:
        part: This task's number, from 0.
        parts: How many tasks there are.
        array: What the tasks that were started together have in common, and no other does: the first of them lists
            the corpus for all. None lists it anew.

    Raises:
        ConfigError: There is no such part.
    """

    part: int = 0
    parts: int = 1
    array: str | None = None

    def __post_init__(self) -> None:
        """Refuse a part that is none."""
        if not 0 <= self.part < self.parts:
            problem = f"part={self.part} of parts={self.parts} does not exist"
            raise ConfigError(problem, "parts are numbered from 0 to parts - 1")

    def has(self, job: Job) -> bool:
        """Whether a job is this task's."""
        return job.place % self.parts == self.part

    @property
    def log_name(self) -> str:
        """Where this task names bad inputs as they come; the last task gathers them in quarantine.jsonl."""
        return QUARANTINE_NAME if self.parts == 1 else f"quarantine-{self.part}-of-{self.parts}.jsonl"


def prepare(
    corpus: Corpus, output: Path, *, shard_s: float, workers: int, max_bad_fraction: float, audio_format: str = "flac"
) -> Summary:
    """Write a corpus as shards with an index; what is finished already is kept.

    Two processes that prepare one directory share the work, and both end with the whole dataset.

    Args:
        corpus: What to prepare.
        output: The dataset's directory, made where it is missing.
        shard_s: About how many seconds of audio go to a shard.
        workers: Processes that load and encode; 1 works in this process.
        max_bad_fraction: Fraction of inputs that may be bad before the run stops.
        audio_format: How audio is stored: flac, opus or pcm.

    Raises:
        ConfigError: There is no such format.
        DataError: The corpus is empty, too much of it is bad, the output holds another dataset, or the disk is full.
    """
    preparation = Preparation(corpus, output, shard_s, max_bad_fraction, audio_format)
    summary = preparation.run(Share(), workers)
    if summary is None:
        raise DataError(f"shards of {output} vanished while it was prepared", "run the same command again")
    return summary


class Preparation:
    """A corpus to be written to a directory, by this task and perhaps by others.

    Args:
        corpus: What to prepare.
        output: The dataset's directory.
        shard_s: About how many seconds of audio go to a shard.
        max_bad_fraction: Fraction of inputs that may be bad before the run stops.
        audio_format: How audio is stored: flac, opus or pcm.

    Raises:
        ConfigError: There is no such format.
    """

    def __init__(
        self, corpus: Corpus, output: Path, shard_s: float, max_bad_fraction: float, audio_format: str = "flac"
    ) -> None:
        self.corpus = corpus
        self.output = output
        self.shard_s = shard_s
        self.max_bad_fraction = max_bad_fraction
        self.codec: Codec = codec_named(audio_format)

    def run(self, share: Share, workers: int) -> Summary | None:
        """Do a share of the jobs, and write the card if that was the last of them.

        Args:
            share: Which jobs.
            workers: Processes that load and encode; 1 works in this process.

        Returns:
            What the dataset holds, or None where other tasks have jobs left.

        Raises:
            DataError: See :func:`prepare`.
        """
        try:
            (self.output / PLANS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.output} cannot be made: {error}", "name another output") from error
        with naming_full_disk(self.output):
            try:
                plan = self._plan(share)
            except DataError:
                self._leave_nothing()
                raise
            if self._is_complete(plan):
                _LOG.info("%s is complete", self.output)
                (self.output / PLANS / ARRAY_NAME).unlink(missing_ok=True)
                return read_summary(self.output)
            jobs_of = Counter(job.split for job in plan.jobs())
            _remove_stale_parts(self._folders(jobs_of))
            self._do(plan, share, workers)
            return self._finish(plan, jobs_of)

    def _plan(self, share: Share) -> JobPlan:
        """List the corpus, or take the list that another task of the array has made."""
        folder = self.output / PLANS
        corpus = (self.corpus.name, self.corpus.treatment)
        key = hash_json([FORMAT, share.array, corpus, self.codec.name, self.shard_s], length=32)
        with Claims(self.output / LOCK) as claims, claims.hold(_PLAN_CLAIM, wait=True):
            if share.array is not None and (found := _read_array(folder, key)) is not None:
                return found
            _LOG.info("listing the corpus %s", self.corpus.name)
            plan = make_plan(self.corpus, folder, shard_s=self.shard_s, audio_format=self.codec.name)
            _LOG.info("%s sources in %s shards", f"{plan.num_sources:,}", f"{plan.num_jobs:,}")
            if share.array is not None:
                facts = {"key": key, "plan": plan.fingerprint, "jobs": plan.num_jobs, "sources": plan.num_sources}
                write_json(folder / ARRAY_NAME, facts)
            return plan

    def _leave_nothing(self) -> None:
        """Remove the directory again where nothing is in it: the corpus was refused."""
        with suppress(OSError):  # another task lists the corpus at this moment
            if {path.name for path in self.output.iterdir()} <= {PLANS, LOCK}:
                (self.output / PLANS).rmdir()
                (self.output / LOCK).unlink(missing_ok=True)
                self.output.rmdir()

    def _is_complete(self, plan: JobPlan) -> bool:
        """Whether the whole dataset is there; a card without all its shards is taken away."""
        card = self.output / CARD_NAME
        if not card.exists():
            return False
        try:
            fingerprint = read_json(card)["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            mend = "delete it and prepare again: good shards are kept"
            raise DataError(f"{card} cannot be read: {error}", mend) from error
        if fingerprint != plan.fingerprint:
            problem = f"{self.output} holds a dataset that was prepared from other sources or settings"
            mend = f"name another output, or delete {card}: shards that stay the same are then kept"
            raise DataError(problem, mend)
        if all(read_record(job, self.output) is not None for job in plan.jobs()):
            return True
        card.unlink(missing_ok=True)
        return False

    def _do(self, plan: JobPlan, share: Share, workers: int) -> None:
        """Do what is not done of a share: first what nobody is at, then, with patience, what others had claimed."""
        log = self.output / share.log_name
        log.unlink(missing_ok=True)
        quarantine = Quarantine(log, self.max_bad_fraction)
        num_mine = sum(share.has(job) for job in plan.jobs())
        ended = 0
        claimed: set[int] = set()

        def is_due(job: Job, chosen: set[int] | None) -> bool:
            if not share.has(job) or (chosen is not None and job.place not in chosen):
                return False
            record = read_record(job, self.output)
            if record is not None:
                count(job, len(record.members), record.bad)
            return record is None

        def count(job: Job, num_good: int, bad: tuple[tuple[str, str], ...]) -> None:
            nonlocal ended
            ended += 1
            quarantine.ok(num_good)
            for name, reason in bad:
                quarantine.add(name, reason)
            _LOG.info("shard %d of %d: %s, %d utterances", ended, num_mine, job.name, num_good)

        for chosen in (None, claimed):
            works = plan.with_sources(partial(is_due, chosen=chosen))
            patient = chosen is not None
            outcomes = run_jobs(self.corpus, works, self.output, self.codec, workers=workers, patient=patient)
            with closing(works), closing(outcomes):  # an error holds on to them, and they to open files
                for outcome in outcomes:
                    if outcome.claimed:
                        claimed.add(outcome.job.place)
                    else:
                        count(outcome.job, outcome.num_good, outcome.bad)

    def _finish(self, plan: JobPlan, jobs_of: Mapping[str, int]) -> Summary | None:
        """Write the card if all jobs of all tasks are done; the same bytes, whoever does it."""
        with Claims(self.output / LOCK) as claims, claims.hold(_CARD_CLAIM, wait=True):
            for folder in self._folders(jobs_of):
                _look_anew(folder)
            try:
                summary = write_card(
                    self.output, self.corpus.name, self.codec.name, plan.fingerprint, self._records(plan)
                )
            except _UnfinishedError as unfinished:
                _LOG.info("%s is not done yet: whoever does the last shard writes the card", unfinished)
                return None
            except FileNotFoundError:  # another task did the same at the same time, and has swept
                if not self._is_complete(plan):
                    raise
                return read_summary(self.output)
            self._sweep(plan, jobs_of)
            return summary

    def _records(self, plan: JobPlan) -> Iterator[Record]:
        for job in plan.jobs():
            record = read_record(job, self.output)
            if record is None:
                raise _UnfinishedError(job.name)
            yield record

    def _folders(self, jobs_of: Mapping[str, int]) -> list[Path]:
        """Folders in which tasks write, those above others first."""
        root = [self.output, self.output / PLANS, self.output / RECORDS]
        return root + [folder / split for split in jobs_of for folder in (self.output, self.output / RECORDS)]

    def _sweep(self, plan: JobPlan, jobs_of: Mapping[str, int]) -> None:
        """Remove what killed writers and earlier plans have left."""
        for record in (self.output / RECORDS).glob("*/*.json"):
            split, number = record.parent.name, int(record.stem)
            if number >= jobs_of.get(split, 0):
                (self.output / split / shard_name(number)).unlink(missing_ok=True)
                record.unlink(missing_ok=True)
        for folder in self._folders(jobs_of):
            remove_parts(folder)
        for log in self.output.glob("quarantine-*-of-*.jsonl"):
            log.unlink(missing_ok=True)
        for other in (self.output / PLANS).iterdir():
            if other != plan.path:
                other.unlink(missing_ok=True)


class _UnfinishedError(Exception):
    """A job that is not done; its name is the message."""


def _read_array(folder: Path, key: str) -> JobPlan | None:
    """The plan that the array's first task made, if there is one."""
    try:
        facts = read_json(folder / ARRAY_NAME)
        plan = JobPlan(folder / f"{facts['plan']}.jsonl", facts["plan"], facts["jobs"], facts["sources"])
        return plan if facts["key"] == key and plan.path.is_file() else None
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or another's: the corpus is listed anew
        return None


def _remove_stale_parts(folders: Iterable[Path]) -> None:
    """Remove half-written files that nobody has touched for an hour, by the clock of the file system itself."""
    for folder in folders:
        parts = list(folder.glob(".*.part"))
        if parts:
            now = _look_anew(folder)
            for part in parts:
                with suppress(FileNotFoundError):
                    if now - part.stat().st_mtime > _STALE_S:
                        part.unlink()


def _look_anew(folder: Path) -> float:
    """Make a network file system forget what it remembers of a folder, by a change to it, and tell the time there.

    A node answers for a while from memory which files exist. Of two tasks that end at once each could then miss the
    other's last shard, and neither would write the card.
    """
    if not folder.is_dir():
        return 0.0
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".look.", suffix=".part")
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)
