"""fairseq's lists of audio: train.tsv and valid.tsv, with .wrd, .ltr or .phn beside them."""

from collections.abc import Iterator
from pathlib import Path

from typing_extensions import override

from data_prep.manifests import Manifests
from data_prep.recordings import Recording
from ossicle.core.errors import DataError
from ossicle.data.audio import RATE_HZ

_LABELS = (".wrd", ".ltr", ".phn")


class FairseqTsv(Manifests):
    """Lists of which the first line is the folder of the audio, and others are a path in it, a tab and its samples.

    A list's name is its split. The text of line n is line n of the .wrd, .ltr or .phn file of the same name, the first
    of these that is there; letters are joined to words at their bars, and phones, which have no times, are kept as
    text. All is read line by line.

    Args:
        input: The folder of the lists, or one list.
        root: The folder of the audio, where it is no longer what the lists' first lines say.
        splits: New names for the lists' names.
    """

    @override
    def sources(self) -> Iterator[Recording]:
        for path in self.found(["*.tsv"]):
            split = self.split(path.stem)
            if split is not None:
                yield from self._list(path, split)

    def _list(self, path: Path, split: str) -> Iterator[Recording]:
        lines = self.lines(path)
        listed = next(lines, "").strip()
        root = self.root or Path(listed)
        if not listed or not root.is_dir():
            problem = f"{path} says that its audio is in {listed[:200]!r}, which is no folder"
            if self.root is not None and listed:
                problem = f"root={self.root} is no folder"
            raise DataError(problem, "state where it is: corpus.root=DIR")
        labels = next((path.with_suffix(suffix) for suffix in _LABELS if path.with_suffix(suffix).is_file()), None)
        texts = iter(()) if labels is None else _texts(labels)
        mend = "mend one of them, or remove the texts"
        for number, line in enumerate(lines, start=2):
            text = "" if labels is None else next(texts, None)
            if text is None:
                raise DataError(f"{labels} has fewer lines than {path.name} has files", mend)
            yield _recording(path, root, split, text, (number, line))
        if next(texts, None) is not None:
            raise DataError(f"{labels} has more lines than {path.name} has files", mend)


def _recording(path: Path, root: Path, split: str, text: str, numbered: tuple[int, str]) -> Recording:
    number, line = numbered
    where = f"{path}, line {number}"
    name, _, samples = line.partition("\t")
    if not samples.strip().isdigit():
        problem = f"{where}: {line[:60]!r} is no path, tab and number of samples"
        return Recording(f"{path.name} (line {number})", split, 0.0, problem=problem)
    problem = "" if (root / name).is_file() else f"{where}: there is no file {root / name}"
    return Recording(name, split, int(samples) / RATE_HZ, path=str(root / name), text=text, problem=problem)


def _texts(path: Path) -> Iterator[str]:
    """Every line's text, empty ones too."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                text = line.strip()
                yield " ".join(text.replace(" ", "").split("|")).strip() if path.suffix == ".ltr" else text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}", "mend or remove it") from error
