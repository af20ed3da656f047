"""Corpora of audio files, whole or cut out by time: what their small files share."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from ossicle.core.errors import DataError
from ossicle.data.audio import RATE_HZ, read_audio_file
from ossicle.data.utterance import Corpus, Phone, Sample, Source, Utterance


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
    """

    path: str = ""
    start_s: float = 0.0
    end_s: float | None = None
    language: str = ""
    speaker: str = ""
    text: str = ""
    phones: tuple[tuple[float, float, str], ...] = ()
    problem: str = ""


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
        pcm_S = read_audio_file(self.input / source.path, source.start_s, source.end_s)
        phones = tuple(
            Phone(start, end, symbol)
            for start_s, end_s, symbol in source.phones
            if (end := min(round(end_s * RATE_HZ), len(pcm_S))) > (start := round(start_s * RATE_HZ))
        )
        facts = (source.language, source.speaker, source.text, phones)
        return Sample(Utterance(source.name, source.split, *facts), pcm_S)

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
        """The lines of a UTF-8 list of the corpus, without their ends and without empty ones.

        Raises:
            DataError: It cannot be read as UTF-8 text.
        """
        try:
            with path.open(encoding="utf-8-sig") as file:
                yield from (line.rstrip("\r\n") for line in file if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} cannot be read as UTF-8 text: {error}", "fetch the corpus's lists again"
            ) from error
