"""A dataset's card, index files and picture of lengths, written from the records of its shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ossicle.core.errors import DataError
from ossicle.core.files import atomic_write, hash_json, read_json, write_json
from ossicle.data.audio import RATE_HZ
from ossicle.data.index import CARD_NAME, INDEX_DTYPE, INDEX_NAME
from ossicle.data.shards import Member, shard_name

FORMAT = 1
LENGTHS_NAME = "lengths.png"
_EDGES_S = (*range(31), 45, 60, 120, 600, 3600, 86_400)


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


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """What a split holds.

    Args:
        num_utterances: Utterances.
        num_shards: Tars.
        num_speakers: Speakers that have a name.
        num_languages: Languages that have a code.
        hours: Length of the audio.
        content_hash: Hash of all audio and metadata.
    """

    num_utterances: int
    num_shards: int
    num_speakers: int
    num_languages: int
    hours: float
    content_hash: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What a prepared dataset holds.

    Args:
        path: Its directory.
        corpus: The corpus's name.
        splits: What each split holds, by name.
        num_bad: Sources that were left out; quarantine.jsonl names them.
        content_hash: Hash of all splits.
    """

    path: Path
    corpus: str
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
                content_hash=entry["content_hash"],
            )
            for name, entry in card["splits"].items()
        }
        return Summary(output, card["corpus"], splits, card["num_bad"], card["content_hash"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = f"ossicle prepare corpus=... output={output}"
        raise DataError(f"{output} holds no dataset that can be read: {error!r}", mend) from error


def write_card(output: Path, corpus: str, audio_format: str, fingerprint: str, records: Sequence[Record]) -> Summary:
    """Write every split's index, the picture of lengths, and last the card, which makes the dataset one."""
    used = [record for record in records if record.members]
    speakers = sorted({member.speaker for record in used for member in record.members})
    languages = sorted({member.language for record in used for member in record.members})
    splits: dict[str, dict[str, object]] = {}
    lengths: dict[str, NDArray[np.float64]] = {}
    for split in dict.fromkeys(record.split for record in used):
        chosen = [record for record in used if record.split == split]
        rows = _rows(chosen, speakers, languages)
        with atomic_write(output / split / INDEX_NAME) as file:
            np.save(file, rows, allow_pickle=False)
        splits[split] = _entry(chosen, rows)
        lengths[split] = rows["samples"] / RATE_HZ
    draw_lengths(lengths, output / LENGTHS_NAME)
    card = {
        "format": FORMAT,
        "corpus": corpus,
        "audio_format": audio_format,
        "rate_hz": RATE_HZ,
        "fingerprint": fingerprint,
        "content_hash": hash_json({name: entry["content_hash"] for name, entry in splits.items()}, length=32),
        "num_bad": sum(len(record.bad) for record in records),
        "splits": splits,
        "speakers": speakers,
        "languages": languages,
    }
    write_json(output / CARD_NAME, card)
    return read_summary(output)


def draw_lengths(lengths_s: dict[str, NDArray[np.float64]], path: Path) -> None:
    """Draw how many utterances of each split have which length, as a PNG.

    Args:
        lengths_s: Lengths in seconds, shape (num_utterances,), by split.
        path: Where the picture goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  slow, and workers never draw
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    longest = max(float(np.quantile(length, 0.995)) for length in lengths_s.values())
    bins = np.linspace(0, max(longest, 1.0), 61)
    for split, length in lengths_s.items():
        label = f"{split}: {len(length)} utterances, {length.sum() / 3600:.2f} h"
        axes.hist(np.clip(length, 0, bins[-1]), bins=bins.tolist(), histtype="step", label=label)
    axes.set(xlabel="length (s)", ylabel="utterances")
    axes.legend(frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})


def _rows(records: Sequence[Record], speakers: list[str], languages: list[str]) -> NDArray[np.void]:
    speaker_ids = {name: number for number, name in enumerate(speakers)}
    language_ids = {name: number for number, name in enumerate(languages)}
    listed = (
        (
            shard,
            member.audio_offset,
            member.audio_bytes,
            member.meta_offset,
            member.meta_bytes,
            member.samples,
            speaker_ids[member.speaker],
            language_ids[member.language],
            member.digest,
        )
        for shard, record in enumerate(records)
        for member in record.members
    )
    return np.array(list(listed), dtype=INDEX_DTYPE)


def _entry(records: Sequence[Record], rows: NDArray[np.void]) -> dict[str, object]:
    shards = [
        {
            "name": shard_name(record.number),
            "bytes": record.bytes,
            "num_utterances": len(record.members),
            "num_samples": sum(member.samples for member in record.members),
            "content_hash": record.content_hash,
        }
        for record in records
    ]
    counts = np.histogram(rows["samples"] / RATE_HZ, bins=[*_EDGES_S, np.inf])[0]
    members = list(chain.from_iterable(record.members for record in records))
    return {
        "num_utterances": len(rows),
        "num_samples": int(rows["samples"].sum()),
        "hours": round(int(rows["samples"].sum()) / RATE_HZ / 3600, 4),
        "num_speakers": len({member.speaker for member in members} - {""}),
        "num_languages": len({member.language for member in members} - {""}),
        "content_hash": hash_json([record.content_hash for record in records], length=32),
        "lengths": {"edges_s": list(_EDGES_S), "counts": counts.tolist()},
        "shards": shards,
    }
