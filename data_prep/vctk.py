"""VCTK 0.92: newspaper sentences read by 110 English speakers with many accents (doi 10.7488/ds/2645)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from typing_extensions import override

from data_prep.listing import files, folders, inside, present
from data_prep.recordings import Recording, Recordings
from ossicle.core.errors import ConfigError
from ossicle.core.seeds import derive_seed
from ossicle.data.utterance import Sample, Source

_AUDIO = "wav48_silence_trimmed"
_BYTES_PER_S = 34_500  # of its FLAC at 48 kHz: 10.9 GB for twice 44 hours


class VCTK(Recordings):
    """wav48_silence_trimmed/SPEAKER/SPEAKER_NUMBER_mic1.flac and txt/SPEAKER/SPEAKER_NUMBER.txt.

    There are no official splits: speakers are put in an order by a hash of their names, and the first ones are for
    test and dev. The first 24 sentences are the same for all speakers. Speaker p315 has no texts, p280 and p362 lack
    recordings of the second microphone; what is there is taken.

    Args:
        input: The folder VCTK-Corpus-0.92, or the one that holds it.
        mic: Which of the two microphones to take.
        dev_fraction: Fraction of speakers for dev.
        test_fraction: Fraction of speakers for test.

    Raises:
        ConfigError: There is no such microphone, or the fractions leave nothing for training.
    """

    name = "vctk"

    def __init__(
        self,
        input: str | Path,  # noqa: A002  the name that users write
        mic: Literal["mic1", "mic2"] = "mic1",
        dev_fraction: float = 0.05,
        test_fraction: float = 0.05,
    ) -> None:
        super().__init__(input)
        if mic not in {"mic1", "mic2"}:
            raise ConfigError(f"mic={mic} is no microphone", "choose from mic1, mic2")
        if min(dev_fraction, test_fraction) < 0 or dev_fraction + test_fraction >= 1:
            problem = f"dev_fraction={dev_fraction} and test_fraction={test_fraction} leave nothing for train"
            raise ConfigError(problem, "give fractions whose sum is below 1")
        self.mic = mic
        self.dev_fraction = dev_fraction
        self.test_fraction = test_fraction

    @override
    def sources(self) -> Iterator[Recording]:
        base = inside(self.input, "VCTK-Corpus-0.92")
        present(base, None, (_AUDIO,), "VCTK 0.92")
        speakers = folders(base / _AUDIO)
        splits = self._splits(speakers)
        for speaker in speakers:
            for name, size in files(base / _AUDIO / speaker, f"_{self.mic}.flac"):
                path = (base / _AUDIO / speaker / f"{name}_{self.mic}.flac").relative_to(self.input).as_posix()
                seconds = size / _BYTES_PER_S
                yield Recording(name, splits[speaker], seconds, path=path, language="en", speaker=speaker)

    @override
    def load(self, source: Source) -> Sample:
        """One recording with its text, which lies in a file of its own: 44,000 are opened here, not while listing."""
        assert isinstance(source, Recording)
        path = inside(self.input, "VCTK-Corpus-0.92") / "txt" / source.speaker / f"{source.name}.txt"
        text = " ".join(self.lines(path)).strip() if path.is_file() else ""
        return super().load(dataclasses.replace(source, text=text))

    def _splits(self, speakers: list[str]) -> dict[str, str]:
        ordered = sorted(speakers, key=lambda speaker: derive_seed(0, "vctk", speaker))
        num_test = round(self.test_fraction * len(ordered))
        num_dev = round(self.dev_fraction * len(ordered))
        names = ["test"] * num_test + ["dev"] * num_dev + ["train"] * len(ordered)
        return dict(zip(ordered, names, strict=False))
