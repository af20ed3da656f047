"""A dataset's card, index files and picture of lengths, written from the records of its shards."""

import json
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ossicle.core.errors import DataError
from ossicle.core.files import atomic_write, hash_json, read_json
from ossicle.data.audio import RATE_HZ
from ossicle.data.index import CARD_NAME, INDEX_NAME
from ossicle.data.jobs import FORMAT
from ossicle.data.merge import Numbering, SplitMerger, draw_lengths
from ossicle.data.quarantine import log_line
from ossicle.data.records import Record

LENGTHS_NAME = "lengths.png"
QUARANTINE_NAME = "quarantine.jsonl"


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """What a split holds.

    Args:
        num_utterances: Utterances.
        num_shards: Tars.
        num_speakers: Speakers that have a name.
        num_languages: Languages that have a code.
        hours: Length of the audio.
        hours_by_language: The same by language code; the empty code stands for what has none.
        bytes: Size of the tars.
        content_hash: Hash of all audio and metadata.
    """

    num_utterances: int
    num_shards: int
    num_speakers: int
    num_languages: int
    hours: float
    hours_by_language: dict[str, float]
    bytes: int
    content_hash: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What a prepared dataset holds.

    Args:
        path: Its directory.
        corpus: The corpus's name.
        audio_format: How audio is stored.
        splits: What each split holds, by name.
        num_bad: Sources that were left out; quarantine.jsonl names them.
        content_hash: Hash of all splits.
    """

    path: Path
    corpus: str
    audio_format: str
    splits: dict[str, SplitSummary]
    num_bad: int
    content_hash: str

    @property
    def hours(self) -> float:
        """Length of the audio of all splits."""
        return sum(split.hours for split in self.splits.values())


def read_summary(output: Path) -> Summary:
    """What a prepared dataset's card says.

    Raises:
        DataError: There is no card, or it cannot be read.
    """
    try:
        card = read_json(output / CARD_NAME)
        splits = {
            name: SplitSummary(
                num_utterances=entry["num_utterances"],
                num_shards=len(entry["shards"]),
                num_speakers=entry["num_speakers"],
                num_languages=entry["num_languages"],
                hours=entry["num_samples"] / card["rate_hz"] / 3600,
                hours_by_language=entry["hours_by_language"],
                bytes=entry["bytes"],
                content_hash=entry["content_hash"],
            )
            for name, entry in card["splits"].items()
        }
        return Summary(output, card["corpus"], card["audio_format"], splits, card["num_bad"], card["content_hash"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = f"ossicle prepare corpus=... output={output}"
        raise DataError(f"{output} holds no dataset that can be read: {error!r}", mend) from error


def write_card(output: Path, corpus: str, audio_format: str, fingerprint: str, records: Iterable[Record]) -> Summary:
    """Write every split's index, the quarantine, the picture of lengths, and last the card, which makes it a dataset.

    Args:
        output: The dataset's directory.
        corpus: The corpus's name.
        audio_format: How audio is stored.
        fingerprint: Of the plan.
        records: Of all shards, a split's in the order of their numbers. Nothing is written before the last has come.

    Raises:
        DataError: No record has an utterance.
    """
    speakers, languages = Numbering(), Numbering()
    with ExitStack() as stack:
        splits: dict[str, SplitMerger] = {}
        num_bad = 0
        with atomic_write(output / QUARANTINE_NAME) as log:  # on an error what stood there stays
            for record in records:
                log.writelines(log_line(name, reason) for name, reason in record.bad)
                num_bad += len(record.bad)
                if record.members and record.split not in splits:
                    rows = stack.enter_context(tempfile.TemporaryFile(dir=output))
                    splits[record.split] = SplitMerger(rows, speakers, languages)
                if record.members:
                    splits[record.split].add(record)
        if not num_bad:
            (output / QUARANTINE_NAME).unlink()
        if not splits:
            problem = f"nothing in the corpus {corpus} can be used: all {num_bad} inputs are bad"
            raise DataError(problem, f"read the reasons in {output / QUARANTINE_NAME}")
        for name, split in splits.items():
            split.write_index(output / name / INDEX_NAME)
        entries = {name: split.entry() for name, split in splits.items()}
        draw_lengths(splits, output / LENGTHS_NAME)
    card = {
        "format": FORMAT,
        "corpus": corpus,
        "audio_format": audio_format,
        "rate_hz": RATE_HZ,
        "fingerprint": fingerprint,
        "content_hash": hash_json({name: entry["content_hash"] for name, entry in entries.items()}, length=32),
        "num_bad": num_bad,
        "splits": entries,
        "speakers": speakers.names(),
        "languages": languages.names(),
    }
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    with atomic_write(output / CARD_NAME) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # a speaker's folder may have a name that is no text
    return read_summary(output)
