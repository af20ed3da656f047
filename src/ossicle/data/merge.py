"""Records of shards become a split's index and figures, one record at a time: memory does not grow with utterances.

What does grow is small: a line for every shard, and the names of speakers and languages.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ossicle.core.files import atomic_write, hash_json
from ossicle.data.audio import RATE_HZ
from ossicle.data.index import INDEX_DTYPE
from ossicle.data.records import Record
from ossicle.data.shards import shard_name

EDGES_S = (*range(31), 45, 60, 120, 600, 3600, 86_400)
STEP_S = 0.1
_STEPS = 36_000  # an hour of tenths of a second, and one more bin for all that is longer
_CHUNK = 100_000


@dataclass(slots=True)
class Numbering:
    """Numbers names in the order in which they come; sorted at the end."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """The number of a name."""
        return self.numbers.setdefault(name, len(self.numbers))

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.numbers)

    def ranks(self) -> NDArray[np.int64]:
        """The place of every number's name among the sorted ones, int64, shape (names,)."""
        place = {name: rank for rank, name in enumerate(self.names())}
        return np.array([place[name] for name in self.numbers], dtype=np.int64)


class SplitMerger:
    """Gathers the records of a split.

    Args:
        rows: An empty file, in which rows wait; nobody else knows it.
        speakers: Numbers of speakers, the same for all splits.
        languages: Numbers of languages, the same for all splits.
    """

    def __init__(self, rows: IO[bytes], speakers: Numbering, languages: Numbering) -> None:
        self._speakers = speakers
        self._languages = languages
        self._rows = rows
        self._shards: list[dict[str, object]] = []
        self._hashes: list[str] = []
        self._seen: set[int] = set()
        self._language_samples: defaultdict[int, int] = defaultdict(int)
        self._edges = np.zeros(len(EDGES_S), dtype=np.int64)
        self._num_bytes = 0
        self.num_rows = 0
        self.num_samples = 0
        self.steps = np.zeros(_STEPS + 1, dtype=np.int64)

    def add(self, record: Record) -> None:
        """Take the next shard, which has members."""
        rows = np.empty(len(record.members), dtype=INDEX_DTYPE)
        for place, member in enumerate(record.members):
            rows[place] = (
                len(self._shards),
                member.audio_offset,
                member.audio_bytes,
                member.meta_offset,
                member.meta_bytes,
                member.samples,
                self._speakers.number(member.speaker),
                self._languages.number(member.language),
                member.digest,
            )
            self._language_samples[int(rows[place]["language"])] += member.samples
        self._rows.write(rows.tobytes())
        samples = rows["samples"]
        self._shards.append(
            {
                "name": shard_name(record.number),
                "bytes": record.bytes,
                "num_utterances": len(rows),
                "num_samples": int(samples.sum()),
                "content_hash": record.content_hash,
            }
        )
        self._hashes.append(record.content_hash)
        self._seen.update(np.unique(rows["speaker"]).tolist())
        self._edges += np.histogram(samples / RATE_HZ, bins=[*EDGES_S, np.inf])[0]
        steps = np.minimum(samples // round(STEP_S * RATE_HZ), _STEPS)
        self.steps += np.bincount(steps.astype(np.int64), minlength=_STEPS + 1)
        self.num_rows += len(rows)
        self.num_samples += int(samples.sum())
        self._num_bytes += record.bytes

    def write_index(self, path: Path) -> None:
        """Write the rows with the final numbers of speakers and languages, as numpy.save would."""
        speakers, languages = self._speakers.ranks(), self._languages.ranks()
        header = {"descr": np.lib.format.dtype_to_descr(INDEX_DTYPE), "fortran_order": False, "shape": (self.num_rows,)}
        with atomic_write(path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for rows in self._chunks():
                rows["speaker"] = speakers[rows["speaker"]]
                rows["language"] = languages[rows["language"]]
                file.write(rows.tobytes())

    def entry(self) -> dict[str, object]:
        """What the card says of the split."""
        names = list(self._languages.numbers)
        hours = {names[number]: samples / RATE_HZ / 3600 for number, samples in self._language_samples.items()}
        return {
            "num_utterances": self.num_rows,
            "num_samples": self.num_samples,
            "hours": round(self.num_samples / RATE_HZ / 3600, 4),
            "bytes": self._num_bytes,
            "num_speakers": len(self._seen - {self._speakers.numbers.get("", -1)}),
            "num_languages": len(hours.keys() - {""}),
            "hours_by_language": {name: round(hours[name], 4) for name in sorted(hours)},
            "content_hash": hash_json(self._hashes, length=32),
            "lengths": {"edges_s": list(EDGES_S), "counts": self._edges.tolist()},
            "shards": self._shards,
        }

    def _chunks(self) -> Iterator[NDArray[np.void]]:
        self._rows.seek(0)
        while data := self._rows.read(_CHUNK * INDEX_DTYPE.itemsize):
            yield np.frombuffer(data, dtype=INDEX_DTYPE).copy()


def draw_lengths(splits: Mapping[str, SplitMerger], path: Path) -> None:
    """Draw how many utterances of each split have which length, as a PNG; the last bin holds all longer ones.

    Args:
        splits: What was gathered, by split.
        path: Where the picture goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  slow, and workers never draw
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    longest = max(np.searchsorted(np.cumsum(split.steps), 0.995 * split.num_rows) + 1 for split in splits.values())
    width = max(1, -(-int(longest) // 60))  # of a bin, in tenths of a second
    starts = np.arange(60) * width
    for name, split in splits.items():
        counts = np.add.reduceat(split.steps, np.minimum(starts, _STEPS))
        label = f"{name}: {split.num_rows} utterances, {split.num_samples / RATE_HZ / 3600:.2f} h"
        axes.stairs(counts, np.append(starts, 60 * width) * STEP_S, label=label)
    axes.set(xlabel="length (s)", ylabel="utterances")
    axes.legend(frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
