"""Libri-Light: 60,000 hours of English audio books, and ten hours with text (Kahn et al., arXiv 1912.07875)."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from typing_extensions import override

from data_prep.librispeech import read_part
from data_prep.listing import check_known, files, folders, inside
from data_prep.recordings import Recording, Recordings
from ossicle.core.errors import ConfigError, DataError
from ossicle.data.utterance import Sample, Source

UNLABELLED = ("small", "medium", "large", "duplicate")
LIMITED = {"10min": ("1h/0",), "1h": ("1h",), "10h": ("1h", "9h")}
"""The sets with text, each part of the next, and their folders."""

_BYTES_PER_S = 16_850  # of its FLAC: 35 GB for 577 hours


class LibriLight(Recordings):
    """SET/READER/BOOK/NAME.flac with a NAME.json that tells where speech is; librispeech_finetuning with its text.

    Recordings are cut at the silences that the corpus's own voice activity tells: neighbouring spans of speech stay
    together while they fit, and a piece is called NAME/START-END, in milliseconds. All of it is the split train;
    LibriSpeech's dev and test parts go with it.

    Args:
        input: The folder that holds small, medium, large, duplicate or librispeech_finetuning.
        parts: Which of the unlabelled sets to take, or one of the sets with text: 10min, 1h or 10h. None takes the
            unlabelled sets that are there.
        min_s: Shorter pieces are left out, in seconds.
        max_s: Length of the longest piece in seconds, or None to keep recordings whole.

    Raises:
        ConfigError: There is no such part, two sets with text are asked for, or the lengths leave nothing.
    """

    name = "librilight"

    def __init__(
        self,
        input: str | Path,  # noqa: A002  the name that users write
        parts: Sequence[str] | None = None,
        min_s: float = 1.0,
        max_s: float | None = 30.0,
    ) -> None:
        super().__init__(input)
        if max_s is not None and not 0 <= min_s < max_s:
            raise ConfigError(f"min_s={min_s} and max_s={max_s} leave no length", "give 0 <= min_s < max_s")
        self.parts = check_known("parts", parts, (*UNLABELLED, *LIMITED))
        if self.parts is not None and len(set(self.parts) & LIMITED.keys()) > 1:
            raise ConfigError(f"parts={list(self.parts)} holds the same speech twice", "choose the largest of them")
        self.min_s = min_s
        self.max_s = max_s
        self.treatment = "" if max_s is None else f"cut by voice_activity: {min_s}-{max_s} s;"

    @override
    def sources(self) -> Iterator[Recording]:
        parts = self.parts or [name for name in UNLABELLED if (self.input / name).is_dir()]
        if not parts:
            self.folder("small")  # raises, and names the mend
        for part in parts:
            if part in LIMITED:
                yield from self._limited(part)
            else:
                yield from self._unlabelled(part)

    @override
    def samples(self, source: Source) -> Iterator[Sample]:
        assert isinstance(source, Recording)
        if self.max_s is None or source.problem or source.text:  # sets with text are cut already
            yield self.load(source)
            return
        for start_s, end_s in join_spans(self._activity(source), self.min_s, self.max_s):
            name = f"{source.name}/{round(start_s * 1000):08d}-{round(end_s * 1000):08d}"
            yield self.load(dataclasses.replace(source, name=name, start_s=start_s, end_s=end_s))

    @override
    def is_plain(self, source: Recording) -> bool:
        return not source.problem and (self.max_s is None or bool(source.text))

    def _unlabelled(self, part: str) -> Iterator[Recording]:
        base = self.folder(part)
        for reader in folders(base):
            for book in folders(base / reader):
                for name, size in files(base / reader / book, ".flac"):
                    path = f"{part}/{reader}/{book}/{name}"
                    seconds = size / _BYTES_PER_S
                    yield Recording(path, "train", seconds, path=f"{path}.flac", language="en", speaker=reader)

    def _limited(self, part: str) -> Iterator[Recording]:
        base = inside(self.input, "librispeech_finetuning")
        for folder in LIMITED[part]:
            if not (base / folder).is_dir():
                mend = "point input at the folder that holds librispeech_finetuning"
                raise DataError(f"{base / folder} is no folder: {part} is not whole", mend)
            for place in sorted((base / folder).rglob("*")):
                if place.name in {"clean", "other"} and place.is_dir():
                    yield from read_part(self, place, "train")

    def _activity(self, source: Recording) -> list[tuple[float, float]]:
        path = (self.input / source.path).with_suffix(".json")
        try:
            spans = json.loads(path.read_bytes())["voice_activity"]
            return [(float(start), float(end)) for start, end in spans]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"{path} does not tell where speech is: {error!r}"
            raise DataError(problem, "fetch it again, or take recordings whole: corpus.max_s=null") from error


def join_spans(spans: Iterable[tuple[float, float]], min_s: float, max_s: float) -> Iterator[tuple[float, float]]:
    """Join spans of speech with the silences between them while they fit, and divide those that alone do not.

    Args:
        spans: Starts and ends in seconds, in order.
        min_s: Shorter results are left out.
        max_s: Length of the longest result.
    """
    joined: list[tuple[float, float]] = []
    for start_s, end_s in spans:
        if joined and end_s - joined[-1][0] <= max_s:
            joined[-1] = (joined[-1][0], max(end_s, joined[-1][1]))
        else:
            joined.append((start_s, end_s))
    for start_s, end_s in joined:
        num_parts = max(1, math.ceil((end_s - start_s) / max_s))
        length_s = (end_s - start_s) / num_parts
        if length_s >= min_s:
            yield from ((start_s + i * length_s, start_s + (i + 1) * length_s) for i in range(num_parts))
