"""GigaSpeech: English audio books, podcasts and YouTube, 10,000 hours with text (Chen et al., arXiv 2106.06909)."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from typing_extensions import override

from data_prep.listing import check_known
from data_prep.recordings import Recording, Recordings
from ossicle.core.errors import DataError

PARTS = {"XL": "train", "L": "train", "M": "train", "S": "train", "XS": "train", "DEV": "dev", "TEST": "test"}
"""The corpus's subsets and the splits that they become."""

_MARKS = {"COMMA": ",", "PERIOD": ".", "QUESTIONMARK": "?", "EXCLAMATIONPOINT": "!"}
_MARK = re.compile(rf"\s*<({'|'.join(_MARKS)})>")
_NO_SPEECH = frozenset({"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"})
_AUDIOS = re.compile(r'"audios"\s*:\s*\[')
_CHUNK = 1 << 22
_LONGEST = 1 << 26  # characters that one recording's entry may take before the file is given up as damaged
_LOG = logging.getLogger(__name__)


class GigaSpeech(Recordings):
    """audio/KIND/FOLDER/NAME.opus, whole recordings, and GigaSpeech.json, which says all of their segments.

    The list of several gigabytes is read recording by recording. Segments that hold no speech (<SIL>, <MUSIC>, <NOISE>
    and <OTHER>, in dev and test) are left out, as the corpus advises; tags of punctuation become its marks.

    Args:
        input: The folder that holds GigaSpeech.json and audio.
        parts: Which of XL, L, M, S and XS to take for train (each holds the next ones), and whether DEV and TEST.

    Raises:
        ConfigError: There is no such part.
    """

    name = "gigaspeech"

    def __init__(self, input: str | Path, parts: Sequence[str] = ("XL", "DEV", "TEST")) -> None:  # noqa: A002
        super().__init__(input)
        self.parts = check_known("parts", parts, PARTS) or ()

    @override
    def sources(self) -> Iterator[Recording]:
        path = self.folder() / "GigaSpeech.json"
        self.folder("audio")
        num_silent = 0
        for number, audio in enumerate(read_audios(path)):
            segments = audio.get("segments")
            for place, segment in enumerate(segments if isinstance(segments, list) else [None]):
                source = self._source(audio, segment, f"recording {number} ({audio.get('aid')}), segment {place}")
                if source is not None and source.text in _NO_SPEECH:
                    num_silent += 1
                elif source is not None:
                    yield source
        if num_silent:
            _LOG.info("%d segments without speech are left out", num_silent)

    def _source(self, audio: Mapping[str, object], segment: object, place: str) -> Recording | None:
        """A segment, or None where it belongs to no part that is taken."""
        if not isinstance(segment, dict) or not isinstance(segment.get("subsets"), list):
            return Recording(place, "train", 0.0, problem=f"GigaSpeech.json: {place} has no subsets")
        subsets = {str(subset).strip("{}") for subset in segment["subsets"]}
        part = next((part for part in self.parts if part in subsets), None)
        if part is None:
            return None
        try:
            start_s, end_s = float(segment["begin_time"]), float(segment["end_time"])
            name, path, text = str(segment["sid"]), str(audio["path"]), str(segment["text_tn"])
        except (KeyError, TypeError, ValueError) as error:
            return Recording(place, PARTS[part], 0.0, problem=f"GigaSpeech.json: {place} cannot be read: {error!r}")
        speaker = str(segment.get("speaker", "N/A"))
        return Recording(
            name=name,
            split=PARTS[part],
            seconds=max(0.0, end_s - start_s),
            path=path,
            start_s=start_s,
            end_s=end_s,
            language="en",
            speaker="" if speaker == "N/A" else speaker,
            text=_MARK.sub(_mark, text).strip(),
            problem="" if 0 <= start_s < end_s else f"GigaSpeech.json: {name} lasts from {start_s} to {end_s} s",
        )


def read_audios(path: Path, chunk: int = _CHUNK) -> Iterator[Mapping[str, object]]:
    """The entries of the list "audios", one at a time: memory holds one entry and a chunk, whatever the file's size.

    Args:
        path: GigaSpeech.json.
        chunk: Characters to read at once.

    Raises:
        DataError: The file is missing, cut off or no such list.
    """
    decoder = json.JSONDecoder()
    text, place, inside = "", 0, False
    try:
        with path.open(encoding="utf-8") as file:
            while True:
                if not inside and (opening := _AUDIOS.search(text)):
                    place, inside = opening.end(), True
                while inside:
                    place = _skip(text, place)
                    if text[place : place + 1] == "]":
                        return
                    try:
                        entry, place = decoder.raw_decode(text, place)
                    except ValueError:
                        break  # the entry goes on in what was not read yet
                    if not isinstance(entry, dict):
                        raise _damaged(path, f"{str(entry)[:40]!r} stands among the recordings")
                    yield entry
                more = file.read(max(chunk, len(text) - place))
                if not more or len(text) - place > _LONGEST:
                    reason = "an entry does not end" if inside else 'it has no list "audios"'
                    raise _damaged(path, reason)
                text, place = text[place:] + more, 0
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error


def _skip(text: str, place: int) -> int:
    while text[place : place + 1] in {" ", "\t", "\r", "\n", ","}:
        place += 1
    return place


def _mark(found: re.Match[str]) -> str:
    return _MARKS[found[1]]


def _damaged(path: Path, reason: str) -> DataError:
    mend = "fetch it again and compare its MD5, and point input at the folder that holds it"
    return DataError(f"{path} cannot be read as GigaSpeech's list: {reason}", mend)
