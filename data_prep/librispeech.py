"""LibriSpeech: read English from audio books, 960 hours to train on (Panayotov et al., ICASSP 2015; OpenSLR 12)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from typing_extensions import override

from data_prep.listing import check_known, files, folders, inside, present
from data_prep.recordings import Recording, Recordings
from ossicle.core.errors import DataError

PARTS = {
    "train-clean-100": "train",
    "train-clean-360": "train",
    "train-other-500": "train",
    "dev-clean": "dev-clean",
    "dev-other": "dev-other",
    "test-clean": "test-clean",
    "test-other": "test-other",
}
"""The corpus's parts and the splits that they become."""

_BYTES_PER_S = 17_500  # of its FLAC: 6.3 GB for 100.6 hours


class LibriSpeech(Recordings):
    """PART/READER/CHAPTER/READER-CHAPTER-NUMBER.flac with a READER-CHAPTER.trans.txt in each chapter's folder.

    The parts for training become one split, train; the others keep their names.

    Args:
        input: The folder LibriSpeech, or the one that holds it.
        parts: Which parts to take; None takes those that are there.

    Raises:
        ConfigError: There is no such part.
    """

    name = "librispeech"

    def __init__(self, input: str | Path, parts: Sequence[str] | None = None) -> None:  # noqa: A002  users write it
        super().__init__(input)
        self.parts = check_known("parts", parts, PARTS)

    @override
    def sources(self) -> Iterator[Recording]:
        base = inside(self.input, "LibriSpeech")
        for part in present(base, self.parts, PARTS, "LibriSpeech"):
            yield from read_part(self, base / part, PARTS[part])


def read_part(corpus: Recordings, part: Path, split: str) -> Iterator[Recording]:
    """Every utterance in the folders READER/CHAPTER below a folder, with its text."""
    for reader in folders(part):
        for chapter in folders(part / reader):
            yield from _read_chapter(corpus, part / reader / chapter, split, reader)


def _read_chapter(corpus: Recordings, folder: Path, split: str, reader: str) -> Iterator[Recording]:
    listed = folder / f"{reader}-{folder.name}.trans.txt"
    sizes = dict(files(folder, ".flac"))
    damage = ""
    texts: dict[str, str] = {}
    try:
        for line in corpus.lines(listed):
            name, _, text = line.partition(" ")
            texts[name] = text.strip()
    except DataError as error:
        damage = error.problem
    for name in sorted(texts.keys() | sizes.keys()):
        problem = damage
        if name not in sizes:
            problem = f"{listed} names {name}, and there is no such file beside it"
        elif not damage and not texts.get(name):
            problem = f"{listed} has no text for {name}"
        yield Recording(
            name=name,
            split=split,
            seconds=sizes.get(name, 0) / _BYTES_PER_S,
            path=(folder / f"{name}.flac").relative_to(corpus.input).as_posix(),
            language="en",
            speaker=reader,
            text=texts.get(name, ""),
            problem=problem,
        )
