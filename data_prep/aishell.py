"""AISHELL-1: read Mandarin by 400 speakers, 178 hours (Bu et al., arXiv 1709.05522; OpenSLR 33)."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from typing_extensions import override

from data_prep.listing import check_known, files, folders, inside, present
from data_prep.recordings import Recording, Recordings
from ossicle.core.errors import DataError

PARTS = ("train", "dev", "test")
_BYTES_PER_S = 32_000  # its WAV: 16 bits at 16 kHz


class Aishell(Recordings):
    """wav/PART/SPEAKER/BAC009SPEAKERWNUMBER.wav and transcript/aishell_transcript_v0.8.txt.

    As released, a few hundred recordings have no text: they are taken without one.

    Args:
        input: The folder data_aishell, or the one that holds it, with the archives of its speakers unpacked.
        parts: Which of train, dev and test to take; None takes those that are there.

    Raises:
        ConfigError: There is no such part.
    """

    name = "aishell"

    def __init__(self, input: str | Path, parts: Sequence[str] | None = None) -> None:  # noqa: A002  users write it
        super().__init__(input)
        self.parts = check_known("parts", parts, PARTS)

    @override
    def sources(self) -> Iterator[Recording]:
        base = inside(self.input, "data_aishell")
        wav = base / "wav"
        if wav.is_dir() and not folders(wav) and files(wav, ".tar.gz"):
            raise DataError(
                f"{wav} holds archives alone", f"unpack each: cd {wav}; for f in *.tar.gz; do tar xf $f; done"
            )
        parts = present(wav, self.parts, PARTS, "AISHELL-1")
        texts = self._texts(base / "transcript" / "aishell_transcript_v0.8.txt")
        for part in parts:
            for speaker in folders(wav / part):
                yield from self._speaker(wav / part / speaker, part, texts.get(speaker, {}))

    def _texts(self, path: Path) -> Mapping[str, Mapping[str, str]]:
        """Texts by speaker and name; the speaker stands in the name: BAC009S0002W0122."""
        texts: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for line in self.lines(path):
            name, _, text = line.partition(" ")
            texts[name[6:11]][name] = text.strip()
        return texts

    def _speaker(self, folder: Path, split: str, texts: Mapping[str, str]) -> Iterator[Recording]:
        sizes = dict(files(folder, ".wav"))
        for name in sorted(texts.keys() | sizes.keys()):
            problem = ""
            if name not in sizes:
                problem = f"the transcript names {name}, and there is no such file in {folder}"
            elif texts.get(name) == "":
                problem = f"the transcript has a line for {name} without a text"
            yield Recording(
                name=name,
                split=split,
                seconds=max(0, sizes.get(name, 0) - 44) / _BYTES_PER_S,
                path=(folder / f"{name}.wav").relative_to(self.input).as_posix(),
                language="zh",
                speaker=folder.name,
                text=texts.get(name, ""),
                problem=problem,
            )
