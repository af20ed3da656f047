"""Kaldi's data folders: wav.scp, with segments, utt2spk, utt2lang and text where they are there."""

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from data_prep.disk_table import DiskTable
from data_prep.manifests import Manifests, seconds_of
from data_prep.recordings import Recording

_IN_ARCHIVE = re.compile(r":\d+$")


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder and what it says of its utterances.

    Args:
        path: The folder.
        split: Its split.
        speakers: Speaker by utterance.
        languages: Language by utterance.
        texts: Text by utterance.
        entries: What wav.scp says of recordings, where there are segments of them.
        seen: Utterances that came already.
    """

    path: Path
    split: str
    speakers: DiskTable
    languages: DiskTable
    texts: DiskTable
    entries: DiskTable
    seen: DiskTable


class Kaldi(Manifests):
    """A folder with wav.scp, or one whose folders have one each: data/train, data/dev. A folder's name is its split.

    With segments an utterance is a segment, else a line of wav.scp. An entry of wav.scp that is a command, with a pipe,
    or a place in an archive is counted as bad: nothing is ever executed. spk2gender and other files are not read.
    Relative paths begin in the folder of wav.scp; recipes often mean the folder they run in, which root then tells.

    Every file is read line by line; the paths, speakers, languages and texts of one folder at a time lie in temporary
    files, since nothing makes their files have one order.

    Args:
        input: The folder.
        root: Where relative paths of audio begin.
        splits: New names for the folders' names.
    """

    @override
    def sources(self) -> Iterator[Recording]:
        folders = [self.input]
        if not (self.input / "wav.scp").is_file():
            folders = [path.parent for path in self.found(["*/wav.scp"])]
        for path in folders:
            split = self.split(path.resolve().name)
            if split is not None:
                with ExitStack() as tables:
                    files = ["utt2spk", "utt2lang", "text"]
                    files += ["wav.scp"] if (path / "segments").is_file() else []
                    found = [tables.enter_context(self._table(path / file)) for file in files]
                    found += [tables.enter_context(DiskTable()) for _ in range(5 - len(found))]
                    yield from self._folder(_Folder(path, split, *found))

    def _folder(self, folder: _Folder) -> Iterator[Recording]:
        if not (folder.path / "segments").is_file():
            for line in self.lines(folder.path / "wav.scp"):
                yield self._recording(folder, *_parted(line))
            return
        for number, line in enumerate(self.lines(folder.path / "segments"), start=1):
            yield self._segment(folder, number, line)

    def _segment(self, folder: _Folder, number: int, line: str) -> Recording:
        where = f"{folder.path / 'segments'}, line {number}"
        try:
            name, recording, start, end, *channel = line.split()
            span = float(start), float(end), int(channel[0]) if channel else None
            is_span = 0 <= span[0] < (span[1] if span[1] >= 0 else math.inf)
        except ValueError:
            is_span, name, recording, span = False, f"{folder.path.name}/segments (line {number})", "", None
        if span is None or not is_span:
            problem = f"{where}: {line[:60]!r} is no name, recording, start and end"
        elif (entry := folder.entries.last(recording)) is None:
            problem = f"{where}: there is no recording {recording} in wav.scp"
        else:
            return self._recording(folder, name, entry, span)
        return Recording(name, folder.split, 0.0, problem=problem)

    def _recording(
        self, folder: _Folder, name: str, entry: str, span: tuple[float, float, int | None] = (0.0, -1.0, None)
    ) -> Recording:
        start_s, end_s, channel = span
        path = self.place(entry, folder.path)
        problem = _problem(entry, path, folder.path / "wav.scp")
        twice = name in folder.seen
        folder.seen.add(name)
        to_end_s = 0.0 if problem or end_s >= 0 else seconds_of(path)
        return Recording(
            name=f"{name} (again)" if twice else name,
            split=folder.split,
            seconds=max(0.0, (end_s if end_s >= 0 else to_end_s) - start_s),
            path=path,
            start_s=start_s,
            end_s=end_s if end_s >= 0 else None,  # Kaldi says -1 for the end
            channel=channel,
            language=folder.languages.last(name, ""),
            speaker=folder.speakers.last(name, ""),
            text=folder.texts.last(name, ""),
            problem=f"{folder.path} names two utterances {name}" if twice else problem,
        )

    def _table(self, path: Path) -> DiskTable:
        """What follows the first word of each line, by that word; nothing where there is no such file."""
        return DiskTable(_parted(line) for line in self.lines(path)) if path.exists() else DiskTable()


def _parted(line: str) -> tuple[str, str]:
    """A line's first word, and what follows it."""
    words = line.split(maxsplit=1)
    return words[0], words[1].strip() if len(words) > 1 else ""


def _problem(entry: str, path: str, listed: Path) -> str:
    """Why the file of an entry cannot be read; empty where it can."""
    if "|" in entry:
        return f"{listed} has the command {entry[:80]!r} for it, and commands are not executed: write audio files"
    if not entry or entry == "-":
        return f"{listed} has no path for it"
    if _IN_ARCHIVE.search(entry) and not Path(path).is_file():
        return f"{listed} has the place {entry!r} in an archive for it: write audio files"
    return "" if Path(path).is_file() else f"{listed} names the file {path}, and there is none"
