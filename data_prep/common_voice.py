"""Common Voice: sentences read by volunteers in more than a hundred languages (Ardila et al., arXiv 1912.06670)."""

import logging
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from typing_extensions import override

from data_prep.listing import check_known, folders, number, rows
from data_prep.recordings import Recording, Recordings, file_size
from ossicle.core.errors import DataError

PARTS = {
    "train": "train",
    "dev": "dev",
    "test": "test",
    "validated": "train",
    "other": "train",
    "invalidated": "train",
}
"""The corpus's lists and the splits that they become."""

_COLUMNS = ("client_id", "path", "sentence")
_BYTES_PER_S = 6_500  # of its MP3: 75 GB for 3,209 hours
_USUAL_S = 5.0
_LOG = logging.getLogger(__name__)


class CommonVoice(Recordings):
    """LOCALE/clips/NAME.mp3 with train.tsv, dev.tsv, test.tsv, validated.tsv, other.tsv and invalidated.tsv a locale.

    The official train holds few of the clips: each sentence once. validated holds train too, and other is what nobody
    has listened to; of both, clips and speakers of dev and test are left out, so that these stay unseen. Lengths are
    those of clip_durations.tsv where a release has it. The language is the locale's first part: zh of zh-CN.

    Args:
        input: The folder of a release, cv-corpus-VERSION, or of one locale in it.
        languages: Locales to take, such as de or zh-CN; None takes those that are there.
        parts: Which lists to take.

    Raises:
        ConfigError: There is no such list.
    """

    name = "common_voice"

    def __init__(
        self,
        input: str | Path,  # noqa: A002  the name that users write
        languages: Sequence[str] | None = None,
        parts: Sequence[str] = ("train", "dev", "test"),
    ) -> None:
        super().__init__(input)
        self.languages = None if languages is None else tuple(languages)
        self.parts = check_known("parts", parts, PARTS) or ()

    @override
    def sources(self) -> Iterator[Recording]:
        # what train lists is in validated too
        parts = [part for part in self.parts if not (part == "train" and "validated" in self.parts)]
        for prefix in self._locales():
            clips, speakers = self._held(prefix) if set(parts) - {"train", "dev", "test"} else (set(), set())
            seconds = self._seconds(prefix)
            num_held = 0
            for part in parts:
                for source, clip in self._listed(prefix, part, seconds):
                    if PARTS[part] == "train" and (clip in clips or (source.speaker in speakers)):
                        num_held += 1
                    else:
                        yield source
            if num_held:
                _LOG.info("%s: %d clips of dev's and test's speakers are left out", self.input / prefix, num_held)

    def _locales(self) -> list[str]:
        """Paths from input of the folders of the locales, with a slash at the end; empty for input itself."""
        base = self.folder()
        if (base / "clips").is_dir():
            return [""]
        there = [name for name in folders(base) if (base / name / "clips").is_dir()]
        missing = [name for name in self.languages or () if name not in there]
        if missing or not there:
            problem = f"{base} has no folder {', '.join(missing) or 'LOCALE'}/clips"
            mend = "point input at the folder of a release, cv-corpus-VERSION, or of a locale in it"
            raise DataError(problem, f"{mend}; there is {', '.join(there) or 'no locale'} here")
        return [f"{name}/" for name in self.languages or there]

    def _held(self, prefix: str) -> tuple[set[str], set[str]]:
        """Clips and speakers of dev and test."""
        lists = [path for part in ("dev", "test") if (path := self.input / f"{prefix}{part}.tsv").is_file()]
        held = [(row["path"], row["client_id"]) for path in lists for row, _ in rows(self.lines(path), path, _COLUMNS)]
        return {clip for clip, _ in held}, {speaker for _, speaker in held if speaker}

    def _seconds(self, prefix: str) -> Callable[[str], float]:
        """Length of a clip: out of clip_durations.tsv at 8 bytes a clip, or by the size of its file."""
        path = self.input / f"{prefix}clip_durations.tsv"
        if not path.is_file():
            return lambda clip: (file_size(self.input / f"{prefix}clips/{clip}") or 0) / _BYTES_PER_S
        names, lengths = array("I"), array("f")
        for line in self.lines(path):
            clip, _, milliseconds = line.partition("\t")
            if (length := number(milliseconds)) is not None:
                names.append(zlib.crc32(clip.encode()))  # two clips of one hash may swap their lengths: no harm
                lengths.append(length / 1000)
        order = np.argsort(np.frombuffer(names, np.uint32), kind="stable")
        sorted_names = np.frombuffer(names, np.uint32)[order]
        sorted_lengths = np.frombuffer(lengths, np.float32)[order]

        def find(clip: str) -> float:
            hashed = np.uint32(zlib.crc32(clip.encode()))
            place = int(np.searchsorted(sorted_names, hashed))
            known = place < len(sorted_names) and sorted_names[place] == hashed
            return float(sorted_lengths[place]) if known else _USUAL_S

        return find

    def _listed(self, prefix: str, part: str, seconds: Callable[[str], float]) -> Iterator[tuple[Recording, str]]:
        locale = prefix.rstrip("/") or self.input.resolve().name
        path = self.input / f"{prefix}{part}.tsv"
        for line, (row, damage) in enumerate(rows(self.lines(path), path, _COLUMNS), start=2):
            clip = row["path"] if row["path"].endswith(".mp3") or not row["path"] else f"{row['path']}.mp3"
            problem = damage or ("" if clip else f"{path}: line {line} names no clip")
            yield (
                Recording(
                    name=clip.removesuffix(".mp3") if not problem else f"{locale} {path.name} line {line}",
                    split=PARTS[part],
                    seconds=seconds(clip) if clip else 0.0,
                    path=f"{prefix}clips/{clip}",
                    language=locale.partition("-")[0],
                    speaker=row["client_id"],
                    text=row["sentence"],
                    problem=problem,
                ),
                row["path"],
            )
