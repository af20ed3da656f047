"""NeMo's manifests: a line of JSON for an utterance."""

import re
from collections.abc import Iterator
from pathlib import Path

from typing_extensions import override

from data_prep.manifests import Manifests, Row, number_at, seconds_of, text_at
from data_prep.recordings import Recording

_MANIFEST = re.compile(r"(^|[_.-])manifests?(?=[_.-]|$)")


class Nemo(Manifests):
    """Lines with audio_filepath, and duration, offset, text, speaker and lang where they are there.

    A file's split is its name without the word manifest: train_manifest.json is train. An utterance begins at offset
    and lasts duration, as in NeMo; without a duration it goes on to the file's end. Relative paths begin in the
    manifest's folder. A file that is used with offsets gives utterances PATH@MILLISECONDS. All is read line by line.

    Args:
        input: The folder of the manifests, *.json or *.jsonl, or one manifest.
        root: Where relative paths of audio begin, where that is elsewhere.
        splits: New names for the splits.
    """

    @override
    def sources(self) -> Iterator[Recording]:
        for path in self.found(["*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz"]):
            name = path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
            split = self.split(_MANIFEST.sub("", name).strip("_.-"))
            if split is None:
                continue
            for number, row, problem in self.rows(path):
                yield self._recording(path, split, row, (number, problem))

    def _recording(self, path: Path, split: str, row: Row, numbered: tuple[int, str]) -> Recording:
        number, problem = numbered
        where = f"{path}, line {number}"
        listed = text_at(row, "audio_filepath", "audio_file")
        if not listed:
            problem = problem or f"{where} has no audio_filepath"
            return Recording(f"{path.name} (line {number})", split, 0.0, problem=problem)
        audio = self.place(listed, path.parent)
        offset_s, duration_s = number_at(row, "offset"), number_at(row, "duration")
        start_s = offset_s or 0.0
        if start_s < 0 or (duration_s is not None and duration_s <= 0):
            problem = f"{where}: offset {row.get('offset')} and duration {row.get('duration')} are no span of time"
        elif not Path(audio).is_file():
            problem = f"{where}: there is no file {audio}"
        if duration_s is None:
            duration_s, end_s = 0.0 if problem else max(0.0, seconds_of(audio) - start_s), None
        else:
            end_s = start_s + duration_s
        return Recording(
            name=listed if offset_s is None else f"{listed}@{round(start_s * 1000)}",
            split=split,
            seconds=max(0.0, duration_s),
            path=audio,
            start_s=start_s,
            end_s=end_s,
            language=text_at(row, "lang", "language", "source_lang"),
            speaker=text_at(row, "speaker", "speaker_id"),
            text=text_at(row, "text"),
            problem=problem,
        )
