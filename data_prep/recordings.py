"""Corpora of audio files, whole or cut out by time: what their small files share."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from ossicle.core.errors import DataError
from ossicle.data.audio import RATE_HZ, read_audio_bytes, read_audio_file
from ossicle.data.utterance import Corpus, Phone, Sample, Source, Utterance

BYTES_PER_S = {
    ".wav": 32_000,
    ".wave": 32_000,
    ".flac": 20_000,
    ".mp3": 16_000,
    ".ogg": 8_000,
    ".oga": 8_000,
    ".opus": 4_000,
    ".g722": 8_000,
}
"""Suffixes of audio files, and about how many bytes a second takes: shards are filled by it."""


@dataclass(frozen=True)
class Recording(Source):
    """A file or a span of it, with what its corpus says of it; an unknown thing is empty.

    Args:
        path: The file, from the corpus's folder, or absolute.
        start_s: Where the utterance begins in the file, in seconds.
        end_s: Where it ends, or None at the file's end.
        language: Language code.
        speaker: Speaker's name.
        text: What is said.
        phones: Start and end from the utterance's beginning, in seconds, and symbol.
        problem: Why there is nothing to load; empty where there is.
        channel: The file's channel, from 0, or None for the mean of all.
    """

    path: str = ""
    start_s: float = 0.0
    end_s: float | None = None
    language: str = ""
    speaker: str = ""
    text: str = ""
    phones: tuple[tuple[float, float, str], ...] = ()
    problem: str = ""
    channel: int | None = None


class Recordings(Corpus):
    """A corpus whose sources are recordings: subclasses list them.

    Args:
        input: The corpus's folder.
    """

    def __init__(self, input: str | Path) -> None:  # noqa: A002  the name that users write
        self.input = Path(input)

    @override
    def load(self, source: Source) -> Sample:
        assert isinstance(source, Recording)
        if source.problem:
            raise DataError(source.problem, "mend the corpus or its lists")
        file, span = self.audio(source), (source.start_s, source.end_s, source.channel)
        is_path = isinstance(file, Path)
        pcm_S = read_audio_file(file, *span) if is_path else read_audio_bytes(file, source.name, *span)
        return Sample(describe(source, len(pcm_S)), pcm_S)

    def audio(self, source: Recording) -> Path | bytes:
        """The file that a recording is in, or its bytes.

        Raises:
            DataError: There is none.
        """
        return self.input / source.path

    def is_plain(self, source: Recording) -> bool:
        """Whether a source is one utterance, of which nothing is known beyond its fields: it can be read in blocks."""
        cls = type(self)
        return not source.problem and cls.load is Recordings.load and cls.samples is Corpus.samples

    def folder(self, *parts: str) -> Path:
        """A folder of the corpus that must be there.

        Raises:
            DataError: It is missing: the input is not this corpus, or not whole.
        """
        path = self.input.joinpath(*parts)
        if not path.is_dir():
            mend = f"point input at the folder that holds {'/'.join(parts) or 'the corpus'}"
            raise DataError(f"{path} is no folder: {self.input} does not look like {self.name}", mend)
        return path

    def lines(self, path: Path) -> Iterator[str]:
        """The lines of a UTF-8 list of the corpus, plain or in gzip, without their ends and without empty ones.

        Raises:
            DataError: It cannot be read as UTF-8 text.
        """
        try:
            zipped = path.suffix == ".gz"
            with gzip.open(path, "rt", encoding="utf-8-sig") if zipped else path.open(encoding="utf-8-sig") as file:
                yield from (line.rstrip("\r\n") for line in file if line.strip())
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} cannot be read as UTF-8 text: {error}", "fetch the corpus's lists again"
            ) from error


def describe(source: Recording, num_samples: int) -> Utterance:
    """What a recording says of its sound; phones end where the sound ends.

    Args:
        source: The recording.
        num_samples: Its length at 16 kHz.
    """
    phones = tuple(
        Phone(start, end, symbol)
        for start_s, end_s, symbol in source.phones
        if (end := min(round(end_s * RATE_HZ), num_samples)) > (start := round(start_s * RATE_HZ))
    )
    return Utterance(source.name, source.split, source.language, source.speaker, source.text, phones)


def guess_seconds(path: str, size: int) -> float:
    """About how long a file is, by its suffix and its size in bytes."""
    return size / BYTES_PER_S.get(suffix_of(path), 32_000)


def suffix_of(path: str) -> str:
    """A file's suffix in lower case. pathlib's remembers the names of all files that it is asked for."""
    return f".{path.rpartition('.')[2].lower()}"


def file_size(path: Path) -> int | None:
    """Size in bytes, or None where there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return None
