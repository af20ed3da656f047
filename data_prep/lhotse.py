"""Lhotse's manifests: recordings with supervisions, or cuts, as lines of JSON."""

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from typing_extensions import override

from data_prep.disk_table import DiskTable
from data_prep.manifests import Manifests, Row, number_at, object_at, objects_at, text_at
from data_prep.recordings import Recording
from ossicle.core.errors import DataError

_KINDS = re.compile(r"(?:^|[_.-])(recordings|supervisions|cuts)(?=[_.-]|$)")
_SUFFIX = re.compile(r"\.jsonl(\.gz)?$")
_HARMLESS = {"Resample"}  # transforms that leave the audio what it is
_LOG = logging.getLogger(__name__)


class Lhotse(Manifests):
    """Files called recordings, supervisions or cuts, .jsonl or .jsonl.gz, with a part's name before or after.

    libri_recordings_dev.jsonl.gz and libri_supervisions_dev.jsonl.gz belong together, and dev is their split; a file
    without a part's name after the kind is train. Cuts, where a part has them, are the utterances; else supervisions
    are, and where there are none either, whole recordings. Times of phones are taken from the alignments phone or
    phones. In cuts that begin inside a recording they are left out: Lhotse moves supervisions when it cuts, and leaves
    their alignments where they were, so that nothing tells which times are meant.

    Counted as bad are audio from commands, which are never executed, from URLs and archives, mixed and padded cuts,
    cuts without audio, and recordings with transforms other than resampling. One channel of several is read alone.

    Cuts are read line by line; for supervisions, the recordings of one part at a time are kept in memory.

    Args:
        input: The folder of the manifests, or one file of cuts or recordings.
        root: Where relative paths of audio begin; None: in the manifests' folder.
        splits: New names for the splits.
    """

    @override
    def sources(self) -> Iterator[Recording]:
        for name, paths in self._parts().items():
            split = self.split(name)
            if split is None:
                continue
            if "cuts" in paths:
                for number, row, problem in self.rows(paths["cuts"]):
                    yield self._cut(paths["cuts"], split, row, (number, problem))
            elif "recordings" not in paths:
                problem = f"{paths['supervisions']} has no recordings beside it"
                raise DataError(problem, "put the recordings' manifest there, named alike")
            elif "supervisions" in paths:
                yield from self._supervisions(paths["recordings"], paths["supervisions"], split)
            else:
                for number, row, problem in self.rows(paths["recordings"]):
                    whole = text_at(row, "id") or f"{paths['recordings'].name} (line {number})"
                    yield self._recording(whole, split, row, paths["recordings"], problem)

    def _parts(self) -> dict[str, dict[str, Path]]:
        """The lists, by kind, of every part."""
        parts: dict[str, dict[str, Path]] = {}
        for path in self.found(["*.jsonl", "*.jsonl.gz"]):
            stem = _SUFFIX.sub("", path.name)
            kind = _KINDS.search(stem)
            if kind is None:
                _LOG.info("%s is called neither recordings nor supervisions nor cuts, and is not read", path)
                continue
            part = parts.setdefault(stem[kind.end() :].strip("_.-") or "train", {})
            if kind[1] in part:
                problem = f"{part[kind[1]]} and {path} are {kind[1]} of the same part"
                raise DataError(problem, "keep one of them there, or point input at one")
            part[kind[1]] = path
        if not parts:
            raise DataError(f"{self.input} holds no recordings or cuts", "point input at Lhotse's manifests")
        return parts

    def _supervisions(self, recordings: Path, supervisions: Path, split: str) -> Iterator[Recording]:
        with DiskTable() as known:
            for number, row, problem in self.rows(recordings):
                if problem:
                    yield Recording(f"{recordings.name} (line {number})", split, 0.0, problem=problem)
                known.add(text_at(row, "id"), row)
            for number, row, fault in self.rows(supervisions):
                where = f"{supervisions}, line {number}"
                name = text_at(row, "id") or f"{supervisions.name} (line {number})"
                recording: Row | None = known.last(text_at(row, "recording_id"))
                absent = "" if recording else f"{where}: there is no recording {text_at(row, 'recording_id')!r}"
                found = self._recording(name, split, recording or {}, recordings, fault or absent)
                yield _spanned(found, recording or {}, row, [row], where)

    def _cut(self, path: Path, split: str, row: Row, numbered: tuple[int, str]) -> Recording:
        number, problem = numbered
        name, where = text_at(row, "id") or f"{path.name} (line {number})", f"{path}, line {number}"
        recording = object_at(row, "recording")
        if not problem and not recording:
            kind = text_at(row, "type") or "cut"
            problem = f"{where}: this {kind} holds no recording: only plain cuts of audio can be read"
        found = self._recording(name, split, recording, path, problem)
        supervisions = objects_at(row, "supervisions")
        if number_at(row, "start"):
            if any(object_at(supervision, "alignment") for supervision in supervisions):
                _say_once("alignments of cuts that begin inside a recording are left out")
            supervisions = [_without_alignment(supervision) for supervision in supervisions]
        return _spanned(found, recording, row, supervisions, where)

    def _recording(self, name: str, split: str, row: Row, listed: Path, problem: str) -> Recording:
        """A whole recording."""
        sources = objects_at(row, "sources")
        kinds = {text_at(source, "type") for source in sources}
        path = self.place(text_at(sources[0], "source"), listed.parent) if kinds == {"file"} else ""
        return Recording(
            name=name,
            split=split,
            seconds=number_at(row, "duration") or 0.0,
            path=path,
            problem=problem or _problem(name, row, listed, kinds, path),
        )


def _without_alignment(supervision: Row) -> Row:
    return {**supervision, "alignment": None}


def _problem(name: str, row: Row, listed: Path, kinds: set[str], path: str) -> str:
    """Why a recording cannot be read; empty where it can."""
    transforms = row.get("transforms")
    applied = {text_at(item, "name") for item in objects_at(row, "transforms")}
    num_files = len(objects_at(row, "sources"))
    if "command" in kinds:
        return f"{listed} has a command for {name}, and commands are not executed: write audio files"
    if kinds != {"file"}:
        return f"{listed} has no file for {name}, but {' and '.join(sorted(kinds)) or 'nothing'}"
    if num_files > 1:
        return f"{listed} has {num_files} files for {name}, one a channel: list them one by one"
    if applied - _HARMLESS or (transforms and not applied):
        return f"{listed} asks for transforms of {name}: {', '.join(sorted(applied)) or 'unnamed ones'}"
    return "" if Path(path).is_file() else f"{listed} names the file {path}, and there is none"


def _spanned(whole: Recording, recording: Row, row: Row, supervisions: list[Row], where: str) -> Recording:
    """The span of a recording that a cut or supervision is, with what supervisions say of it.

    Args:
        whole: The recording, under the utterance's name.
        recording: Its object.
        row: The cut's or the supervision's object.
        supervisions: Those in it.
        where: The line, for messages.
    """
    if whole.problem:
        return whole
    start_s, duration_s = number_at(row, "start"), number_at(row, "duration")
    if start_s is None or duration_s is None or start_s < 0 or duration_s <= 0:
        problem = f"{where}: start {row.get('start')} and duration {row.get('duration')} are no span of time"
        return replace(whole, problem=problem)
    try:
        channel = _channel(recording, row)
        phones = tuple(phone for supervision in supervisions for phone in _phones(supervision, start_s))
    except (ValueError, TypeError) as error:
        return replace(whole, problem=f"{where}: {error}")
    return replace(
        whole,
        seconds=duration_s,
        start_s=start_s,
        end_s=start_s + duration_s,
        channel=channel,
        language=_common(supervisions, "language"),
        speaker=_common(supervisions, "speaker"),
        text=" ".join(text for supervision in supervisions if (text := text_at(supervision, "text"))),
        phones=phones,
    )


def _channel(recording: Row, row: Row) -> int | None:
    """Which channel of its file an utterance is, or None for all.

    Raises:
        ValueError: The file has no such channel, or some of several are asked for.
    """
    wanted = row.get("channel", 0)
    there = next((source.get("channels") for source in objects_at(recording, "sources")), None)
    channels = there if isinstance(there, list) else [0]
    if channels in (wanted, [wanted]):
        return None
    if wanted not in channels:
        raise ValueError(f"channel {wanted} is asked for, and the file has the channels {channels}")
    return channels.index(wanted)


def _common(supervisions: list[Row], key: str) -> str:
    """What all supervisions say, or nothing."""
    found = {text_at(row, key) for row in supervisions}
    return found.pop() if len(found) == 1 else ""


def _phones(supervision: Row, begin_s: float) -> Iterator[tuple[float, float, str]]:
    alignment = object_at(supervision, "alignment")
    items = alignment.get("phone") or alignment.get("phones")
    for item in items if isinstance(items, list) else ():
        symbol, start_s, duration_s, *_ = item
        yield max(0.0, start_s - begin_s), start_s + duration_s - begin_s, str(symbol)


@cache
def _say_once(message: str) -> None:
    _LOG.info(message)
