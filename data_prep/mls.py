"""Multilingual LibriSpeech: read speech in eight languages (Pratap et al., arXiv 2012.03411; OpenSLR 94)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from typing_extensions import override

from data_prep.listing import check_known, files, folders, number
from data_prep.recordings import Recording, Recordings
from ossicle.core.errors import ConfigError, DataError

LANGUAGES = {
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "polish": "pl",
    "portuguese": "pt",
    "spanish": "es",
}
"""The languages as folders name them, and their codes."""

PARTS = ("train", "dev", "test", "1hr", "9hr")
_USUAL_S = 15.0  # utterances last 10 to 20 s


class MLS(Recordings):
    """mls_LANGUAGE[_opus]/PART/audio/READER/BOOK/READER_BOOK_NUMBER.flac or .opus, with transcripts.txt a part.

    Lengths are those of the spans in segments.txt. Where a language is there as FLAC and as Opus, FLAC is taken.

    Args:
        input: The folder that holds the folders mls_LANGUAGE.
        languages: Codes of the languages to take, such as de; None takes those that are there.
        parts: Which of train, dev and test to take; 1hr and 9hr, the lists of train for limited supervision, may
            stand in its place.

    Raises:
        ConfigError: There is no such language or part, or one part holds another.
    """

    name = "mls"

    def __init__(
        self,
        input: str | Path,  # noqa: A002  the name that users write
        languages: Sequence[str] | None = None,
        parts: Sequence[str] = ("train", "dev", "test"),
    ) -> None:
        super().__init__(input)
        self.languages = check_known("languages", languages, LANGUAGES.values())
        self.parts = check_known("parts", parts, PARTS) or ()
        if "train" in self.parts and {"1hr", "9hr"} & set(self.parts):
            raise ConfigError(f"parts={list(parts)} holds the same speech twice", "leave out train, or 1hr and 9hr")

    @override
    def sources(self) -> Iterator[Recording]:
        for language, folder in self._folders().items():
            for part in self.parts:
                if part in {"1hr", "9hr"}:
                    yield from self._listed(folder, "train", language, self._handles(folder, part))
                else:
                    yield from self._listed(folder, part, language, None)

    def _folders(self) -> dict[str, str]:
        """The folder of each language, by its code."""
        there = set(folders(self.folder()))
        found = {
            code: name
            for language, code in LANGUAGES.items()
            for name in (f"mls_{language}_opus", f"mls_{language}")  # the last one stays
            if name in there
        }
        wanted = self.languages or tuple(found)
        missing = [code for code in wanted if code not in found]
        if missing or not wanted:
            problem = f"{self.input} has no folder mls_LANGUAGE for {', '.join(missing) or 'any language'}"
            raise DataError(problem, "point input at the folder that holds mls_german, mls_german_opus or the like")
        return {code: found[code] for code in wanted}

    def _handles(self, folder: str, part: str) -> set[str]:
        base = self.folder(folder, "train", "limited_supervision", part)
        lists = [base, *(base / name for name in folders(base))]
        return {
            handle
            for place in lists
            if any(name == "handles" for name, _ in files(place, ".txt"))
            for line in self.lines(place / "handles.txt")
            if (handle := line.strip())
        }

    def _listed(self, folder: str, part: str, language: str, handles: set[str] | None) -> Iterator[Recording]:
        base = self.folder(folder, part)
        suffix = ".opus" if folder.endswith("_opus") else ".flac"
        segments = self.lines(base / "segments.txt") if (base / "segments.txt").is_file() else iter(())
        for line in self.lines(base / "transcripts.txt"):
            name, _, text = line.partition("\t")
            seconds = _seconds(next(segments, ""), name)
            if handles is not None and name not in handles:
                continue
            reader, _, rest = name.partition("_")
            problem = ""
            if not text.strip() or not rest:
                problem = f"{base / 'transcripts.txt'}: {line[:60]!r} is no name with a text"
            yield Recording(
                name=f"{language}/{name}",
                split=part,
                seconds=seconds,
                path=f"{folder}/{part}/audio/{reader}/{rest.partition('_')[0]}/{name}{suffix}",
                language=language,
                speaker=reader,
                text=text.strip(),
                problem=problem,
            )


def _seconds(line: str, name: str) -> float:
    """Length by a line of segments.txt (name, URL, start, end), which lists the same names in the same order."""
    cells = line.split("\t")
    if len(cells) != 4 or cells[0] != name:
        return _USUAL_S
    start_s, end_s = number(cells[2]), number(cells[3])
    return _USUAL_S if start_s is None or end_s is None or end_s <= start_s else end_s - start_s
