"""What is noted of a shard when it is done: its size, its utterances, and the sources that were left out."""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from ossicle.core.files import atomic_write, read_json
from ossicle.data.jobs import Job
from ossicle.data.shards import Member

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """What a shard holds.

    Args:
        split: Its split.
        number: Its number in the split's plan.
        bytes: Size of the tar; 0 where no source was good and there is no tar.
        content_hash: Hash of its audio and metadata.
        members: Its utterances, in order.
        bad: Name and reason of each source that was left out.
    """

    split: str
    number: int
    bytes: int
    content_hash: str
    members: tuple[Member, ...]
    bad: tuple[tuple[str, str], ...]

    def write(self, job: Job, output: Path) -> None:
        """Note that a job is done, in one step."""
        value = {
            "fingerprint": job.fingerprint,
            "bytes": self.bytes,
            "content_hash": self.content_hash,
            "bad": self.bad,
            "members": [dataclasses.astuple(member) for member in self.members],
        }
        with atomic_write(job.record_path(output), "w") as file:
            json.dump(value, file, separators=(",", ":"))
            file.write("\n")


def read_record(job: Job, output: Path) -> Record | None:
    """The record of a job that is done: of its fingerprint, with a shard of the size that was written."""
    path = job.record_path(output)
    try:
        value = read_json(path)
        if value["fingerprint"] != job.fingerprint:
            return None
        members = tuple(Member(*member) for member in value["members"])
        bad = tuple((str(name), str(reason)) for name, reason in value["bad"])
        record = Record(job.split, job.number, value["bytes"], value["content_hash"], members, bad)
        whole = not members or job.shard_path(output).stat().st_size == record.bytes
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s is damaged (%s): its shard is written again", path, error)
        return None
    return record if whole else None
