"""VoxPopuli: the European Parliament in 23 languages, 400,000 hours without text (Wang et al., arXiv 2101.00390)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from typing_extensions import override

from data_prep.listing import check_known, files, folders, number, present, rows
from data_prep.recordings import Recording, Recordings
from ossicle.core.errors import ConfigError, DataError

# fmt: off
LANGUAGES = (
    "bg", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "hr", "hu",
    "it", "lt", "lv", "mt", "nl", "pl", "pt", "ro", "sk", "sl", "sv", "en_accented",
)
# fmt: on
PARTS = ("raw", "unlabelled", "transcribed")
SEGMENTS = "unlabelled_data/unlabelled_v2.tsv.gz"
_SUBSETS = {"400k": ("", ""), "100k": ("", ""), "10k": ("20190101", "20200801")}  # first day, and the one after
_NAMES = ("event", "number", "start", "end")
_BY_TIME = ("event_id", "segment_no", "start", "end")
_BY_SPEAKER = ("session_id", "id_", "start_time", "end_time")
_BYTES_PER_S = 6_000  # of its Ogg Vorbis, mono at 16 kHz
_LOG = logging.getLogger(__name__)


class VoxPopuli(Recordings):
    """raw_audios/LANGUAGE/YEAR/EVENT.ogg with a list of segments, or what the corpus's own tools made of them.

    Three parts: raw cuts the events as they were downloaded by the list of segments, so that nothing has to be cut
    beforehand; unlabelled takes the segments that were cut, unlabelled_data/LANGUAGE/YEAR/EVENT_NUMBER.ogg; and
    transcribed takes transcribed_data/LANGUAGE/YEAR/ID.ogg by its asr_train.tsv, asr_dev.tsv and asr_test.tsv, whose
    normalised text and speakers are known. What has no text is the split train. A language's years are many archives:
    segments of events that are not there are left out and counted.

    Args:
        input: The folder that holds raw_audios, unlabelled_data and transcribed_data.
        part: Which of raw, unlabelled and transcribed to take: they are the same speech.
        languages: Codes of the languages to take, such as de, or en_accented with transcribed; None takes those that
            are there.
        subset: Which of 400k, 100k (plenary sessions) and 10k (those from January 2019 to July 2020) to take of raw
            and unlabelled.
        segments: The list of segments for raw, from input: unlabelled_v2.tsv.gz with 30 s or less each, or
            unlabelled_sd.tsv.gz, cut where speakers change.

    Raises:
        ConfigError: There is no such part, language or subset.
    """

    name = "voxpopuli"

    def __init__(
        self,
        input: str | Path,  # noqa: A002  the name that users write
        part: Literal["raw", "unlabelled", "transcribed"] = "raw",
        languages: Sequence[str] | None = None,
        subset: Literal["400k", "100k", "10k"] = "400k",
        segments: str = SEGMENTS,
    ) -> None:
        super().__init__(input)
        if part not in PARTS:
            raise ConfigError(f"part={part} is no part of VoxPopuli", f"choose from {', '.join(PARTS)}")
        if subset not in _SUBSETS:
            raise ConfigError(f"subset={subset} is no subset of VoxPopuli", f"choose from {', '.join(_SUBSETS)}")
        self.part = part
        self.languages = check_known("languages", languages, LANGUAGES)
        self.subset = subset
        self.segments = segments

    @override
    def sources(self) -> Iterator[Recording]:
        if self.part == "raw":
            yield from self._raw()
        elif self.part == "unlabelled":
            yield from self._unlabelled()
        else:
            yield from self._transcribed()

    def _chosen(self, folder: str) -> list[str]:
        return present(self.folder(folder), self.languages, LANGUAGES, "VoxPopuli")

    def _takes(self, event: str) -> bool:
        """Whether an event, DATE-TIME-KIND-NUMBER_LANGUAGE, belongs to the subset."""
        first, end = _SUBSETS[self.subset]
        return self.subset == "400k" or ("PLENARY" in event and (not first or first <= event[:8] < end))

    def _raw(self) -> Iterator[Recording]:
        languages = self._chosen("raw_audios")
        there = {
            f"{language}/{year}/{event}"
            for language in languages
            for year in folders(self.input / "raw_audios" / language)
            for event, _ in files(self.input / "raw_audios" / language / year, ".ogg")
        }
        num_absent = 0
        for line, (row, damage) in enumerate(self._segments(), start=2):
            event = row["event"]
            language = event.rpartition("_")[2]
            place = f"{language}/{event[:4]}/{event}"
            if damage:
                yield Recording(f"{Path(self.segments).name} line {line}", "train", 0.0, problem=damage)
                continue
            if language not in languages or not self._takes(event):
                continue
            if place not in there:
                num_absent += 1
                continue
            start_s, end_s = number(row["start"]), number(row["end"])
            is_span = start_s is not None and end_s is not None and start_s < end_s
            wrong = f"{self.segments}: {row['start']!r} to {row['end']!r} is no span of time in {event}"
            yield Recording(
                name=f"{event}_{row['number']}",
                split="train",
                seconds=max(0.0, (end_s or 0.0) - (start_s or 0.0)),
                path=f"raw_audios/{place}.ogg",
                start_s=start_s or 0.0,
                end_s=end_s,
                language=language,
                problem="" if is_span else wrong,
            )
        if num_absent:
            _LOG.info("%d segments of events that are not in %s/raw_audios are left out", num_absent, self.input)

    def _segments(self) -> Iterator[tuple[Mapping[str, str], str]]:
        """Event, number, start and end of every segment, with its problem, whichever of the two lists it is."""
        path = self.input / self.segments
        if not path.is_file():
            problem = f"{path} is missing: it tells where segments of the raw recordings begin and end"
            raise DataError(problem, f"fetch {path.name} of the corpus's annotations, or choose corpus.part=unlabelled")
        by_speaker = next(self.lines(path), "").startswith("session_id|")
        separator, columns = ("|", _BY_SPEAKER) if by_speaker else ("\t", _BY_TIME)
        for row, problem in rows(self.lines(path), path, columns, separator):
            yield {name: row[column] for name, column in zip(_NAMES, columns, strict=True)}, problem

    def _unlabelled(self) -> Iterator[Recording]:
        for language in self._chosen("unlabelled_data"):
            base = self.input / "unlabelled_data" / language
            for year in folders(base):
                for name, size in files(base / year, ".ogg"):
                    if self._takes(name):
                        path = f"unlabelled_data/{language}/{year}/{name}.ogg"
                        yield Recording(name, "train", size / _BYTES_PER_S, path=path, language=language)

    def _transcribed(self) -> Iterator[Recording]:
        for language in self._chosen("transcribed_data"):
            base = self.input / "transcribed_data" / language
            lists = [split for split in ("train", "dev", "test") if (base / f"asr_{split}.tsv").is_file()]
            if not lists:
                mend = f"let the corpus's own tool cut it: python -m voxpopuli.get_asr_data --lang {language}"
                raise DataError(f"{base} has no asr_train.tsv, asr_dev.tsv or asr_test.tsv", mend)
            for split in lists:
                yield from self._table(base / f"asr_{split}.tsv", split, language)

    def _table(self, path: Path, split: str, language: str) -> Iterator[Recording]:
        sizes = {
            f"{year}/{name}": size for year in folders(path.parent) for name, size in files(path.parent / year, ".ogg")
        }
        for row, problem in rows(self.lines(path), path, ("id", "normalized_text", "speaker_id")):
            place = f"{row['id'][:4]}/{row['id']}"
            yield Recording(
                name=row["id"],
                split=split,
                seconds=sizes.get(place, 0) / _BYTES_PER_S,
                path=f"transcribed_data/{language}/{place}.ogg",
                language=language.partition("_")[0],
                speaker=row["speaker_id"].replace("None", ""),
                text=row["normalized_text"],
                problem=problem or ("" if place in sizes else f"{path} names {place}.ogg, and there is no such file"),
            )
