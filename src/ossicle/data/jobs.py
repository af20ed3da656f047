"""The plan of a preparation: which sources go to which shard, streamed to a file and read back job by job."""

import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any, Self

from ossicle.core.errors import DataError
from ossicle.core.files import hash_json
from ossicle.data.names import checked_names, digest_name
from ossicle.data.shards import shard_name
from ossicle.data.utterance import Corpus, Source

FORMAT = 2
RECORDS = ".records"
PLANS = ".plan"
_MAX_SOURCES = 20_000  # in one job: sources without a length would never fill a shard
_SAFE_SPLIT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ENCODER = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Job:
    """One shard to be written.

    Args:
        place: Its number among all jobs, in the order of the plan.
        split: Its split.
        number: Its number in the split.
        fingerprint: Hash of all that decides the shard's bytes.
    """

    place: int
    split: str
    number: int
    fingerprint: str

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.split}/{shard_name(self.number)}"

    def shard_path(self, output: Path) -> Path:
        """Where its shard goes."""
        return output / self.split / shard_name(self.number)

    def record_path(self, output: Path) -> Path:
        """Where it is noted that the shard is done, and what it holds."""
        return output / RECORDS / self.split / f"{self.number:06d}.json"


@dataclass(frozen=True, slots=True)
class JobPlan:
    """All jobs, in a file: a line of JSON for a job, and one for its sources. Memory holds one job at a time.

    Args:
        path: The file.
        fingerprint: Hash of all jobs.
        num_jobs: Jobs.
        num_sources: Sources.
    """

    path: Path
    fingerprint: str
    num_jobs: int
    num_sources: int

    def jobs(self) -> Iterator[Job]:
        """Every job, in order."""
        return (job for job, _ in self._read(lambda _: False))

    def with_sources(self, wanted: Callable[[Job], bool]) -> Generator[tuple[Job, tuple[Source, ...]]]:
        """The wanted jobs with their sources, in order."""
        kinds = _kinds()
        for job, line in self._read(wanted):
            if line:
                yield job, tuple(_source(kinds, kind, fields, self.path) for kind, fields in json.loads(line))

    def _read(self, wanted: Callable[[Job], bool]) -> Iterator[tuple[Job, bytes]]:
        with self.path.open("rb") as file:
            for place in count():
                line = file.readline()
                if not line:
                    return
                split, number, fingerprint, size = json.loads(line)
                job = Job(place, split, number, fingerprint)
                if wanted(job):
                    yield job, file.read(size)
                else:
                    file.seek(size, os.SEEK_CUR)
                    yield job, b""


@dataclass(slots=True)
class _Filling:
    """A job to which sources are still added."""

    number: int
    kinds: list[str]
    fields: list[str]
    seconds: float = 0.0

    @classmethod
    def empty(cls, number: int) -> Self:
        return cls(number, [], [])

    def write(self, file: IO[bytes], settings: str, split: str) -> str:
        """Append the job to a plan, and return its fingerprint."""
        digest = hashlib.sha256(f"{settings}\n{split}\n{self.number}\n".encode())
        digest.update("\n".join(self.fields).encode())
        fingerprint = digest.hexdigest()[:32]
        listed = (f'["{kind}",{fields}]' for kind, fields in zip(self.kinds, self.fields, strict=True))
        body = f"[{','.join(listed)}]\n".encode()
        file.write(f"{_ENCODER.encode((split, self.number, fingerprint, len(body)))}\n".encode())
        file.write(body)
        return fingerprint


def make_plan(corpus: Corpus, folder: Path, *, shard_s: float, audio_format: str) -> JobPlan:
    """List a corpus's sources and lay down which go to which shard. The file is named by its content.

    Args:
        corpus: What is prepared.
        folder: Where the plan goes.
        shard_s: About how many seconds of audio go to a shard.
        audio_format: How audio is encoded.

    Raises:
        DataError: There are no sources, two have one name, or one belongs to a split that is no folder name.
    """
    treated = f"{corpus.name} {corpus.treatment}"
    settings = hash_json({"format": FORMAT, "corpus": treated, "audio_format": audio_format}, length=32)
    with checked_names(folder) as names, _spool(folder) as file:
        total = hashlib.sha256()
        num_jobs = num_sources = 0
        for filling, split in _fill(_listed(corpus, names.add), shard_s):
            total.update(filling.write(file, settings, split).encode())
            num_jobs += 1
            num_sources += len(filling.fields)
        if not num_jobs:
            raise DataError(f"the corpus {corpus.name} has no audio", "point it at a folder with audio files")
        file.flush()
        plan = JobPlan(Path(file.name), total.hexdigest()[:32], num_jobs, num_sources)
        _refuse_repeated(plan, names.repeated(), corpus.name)
        os.fsync(file.fileno())
        final = folder / f"{plan.fingerprint}.jsonl"
        if not final.exists() or final.stat().st_size != plan.path.stat().st_size:
            plan.path.chmod(0o644)
            plan.path.replace(final)  # else others may be reading the very same
    return dataclasses.replace(plan, path=final)


def _listed(corpus: Corpus, take_name: Callable[[str], None]) -> Iterator[Source]:
    for source in corpus.sources():
        if not _SAFE_SPLIT.fullmatch(source.split):
            problem = f"{source.name} belongs to the split {source.split!r}, which is no folder name"
            raise DataError(problem, "name splits with letters, digits, - and _")
        take_name(source.name)
        yield source


def _fill(sources: Iterable[Source], shard_s: float) -> Iterator[tuple[_Filling, str]]:
    """Jobs as they become full, then those that are left; one unfinished job a split is held."""
    filling: dict[str, _Filling] = {}
    for source in sources:
        job = filling.setdefault(source.split, _Filling.empty(0))
        if job.seconds >= shard_s or len(job.fields) >= _MAX_SOURCES:
            yield job, source.split
            job = filling[source.split] = _Filling.empty(job.number + 1)
        job.kinds.append(_kind(type(source)))
        job.fields.append(_fields(source))
        job.seconds += source.seconds
    for split, job in filling.items():
        yield job, split


@contextmanager
def _spool(folder: Path) -> Generator[IO[bytes]]:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".plan.", suffix=".part", delete=False) as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)


def _refuse_repeated(plan: JobPlan, suspects: set[bytes], corpus: str) -> None:
    if not suspects:
        return
    names = (source.name for _, sources in plan.with_sources(lambda _: True) for source in sources)
    times = Counter(name for name in names if digest_name(name) in suspects)
    twice = [name for name, number in times.items() if number > 1]
    if twice:
        more = f", and {len(twice) - 1} more" if len(twice) > 1 else ""
        problem = f"the corpus {corpus} names two sources {twice[0]!r}{more}"
        raise DataError(problem, "give every utterance its own name")


def _kind(cls: type[Source]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _kinds() -> dict[str, type[Source]]:
    """Every class of sources that has been imported: a plan can make nothing else."""
    found: dict[str, type[Source]] = {}
    waiting: list[type[Source]] = [Source]
    while waiting:
        cls = waiting.pop()
        found[_kind(cls)] = cls
        waiting.extend(cls.__subclasses__())
    return found


def _fields(source: Source) -> str:
    values = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    try:
        return _ENCODER.encode(values)
    except (TypeError, ValueError) as error:
        kind = type(source).__name__
        raise TypeError(f"a {kind} holds what JSON does not: give it text, numbers and tuples of them") from error


def _source(kinds: dict[str, type[Source]], kind: str, fields: dict[str, Any], path: Path) -> Source:
    if kind not in kinds:
        problem = f"{path} lists sources of the kind {kind}, which this process does not know"
        raise DataError(problem, f"delete {path.parent} and prepare again")
    return kinds[kind](**{name: _frozen(value) for name, value in fields.items()})


def _frozen(value: Any) -> Any:  # noqa: ANN401  JSON has any shape
    """What JSON gives as a list was a tuple."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
