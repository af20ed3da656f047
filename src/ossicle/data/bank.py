"""Recordings that are held in memory as a whole: noises of a prepared dataset, impulse responses of a folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from ossicle.core.errors import DataError
from ossicle.core.seeds import numpy_generator
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"})


@dataclass(frozen=True)
class NoiseRecordings:
    """A bounded random choice of the recordings of a prepared dataset, end to end; every rank chooses the same.

    Args:
        shards: Directory that ``ossicle prepare`` wrote.
        split: Its split.
        max_s: Seconds that are held; each takes 32 kB at 16 kHz.
        seed: Seeds the choice.
    """

    shards: Path | str
    split: str = "train"
    max_s: float = 1800.0
    seed: int = 0

    def __call__(self, rate_hz: int) -> Tensor:
        """The recordings, int16, shape (N,) with N at most ``max_s * rate_hz``.

        Raises:
            DataError: The directory is no prepared dataset, is empty, or has another rate.
        """
        index = DatasetIndex.load(self.shards, self.split)
        if index.rate_hz != rate_hz or index.num_utterances == 0:
            raise DataError(
                f"{self.shards} holds {index.num_utterances} recordings at {index.rate_hz} Hz,"
                f" and noise at {rate_hz} Hz is needed",
                "prepare the noises as the speech was prepared",
            )
        room = round(self.max_s * rate_hz)
        parts: list[NDArray[np.int16]] = []
        for row in numpy_generator(self.seed, "noise").permutation(index.num_utterances).tolist():
            wanted = min(room, int(index.rows[row]["samples"]))
            if wanted == 0:
                break
            wave_S = decode(index.read_audio(row), 0, wanted)
            parts.append(np.clip(np.rint(wave_S * 32768), -32768, 32767).astype(np.int16))
            room -= wanted
        return torch.from_numpy(np.concatenate(parts))


@dataclass(frozen=True)
class ResponseFiles:
    """Impulse responses of rooms: every audio file below a folder, every channel a response of its own.

    Args:
        folder: The folder.
        max_s: Seconds of a file that are read.
        max_responses: Responses that are held; a random choice where there are more.
        seed: Seeds the choice.
    """

    folder: Path | str
    max_s: float = 2.0
    max_responses: int = 1000
    seed: int = 0

    def __call__(self, rate_hz: int) -> list[Tensor]:
        """The responses, float32, each of shape (samples,).

        Raises:
            DataError: The folder holds no audio, or a file cannot be read.
        """
        files = sorted(path for path in Path(self.folder).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        if not files:
            raise DataError(f"{self.folder} holds no impulse responses", "name a folder of audio files")
        found: list[Tensor] = []
        for place in numpy_generator(self.seed, "responses").permutation(len(files)).tolist():
            channels_CS = torch.from_numpy(self._read(files[place], rate_hz))
            found += list(channels_CS.unbind(0))
            if len(found) >= self.max_responses:
                break
        return found[: self.max_responses]

    def _read(self, path: Path, rate_hz: int) -> NDArray[np.float32]:
        try:
            with soundfile.SoundFile(path) as file:
                wave_SC = file.read(round(self.max_s * file.samplerate), dtype="float32", always_2d=True)
                rate_here_hz = file.samplerate
        except (OSError, soundfile.SoundFileError) as error:
            raise DataError(f"{path} cannot be read as audio: {error}", "replace or remove the file") from error
        if len(wave_SC) == 0 or not np.isfinite(wave_SC).all():
            raise DataError(f"{path} holds no samples, or some that are NaN", "replace or remove the file")
        if rate_here_hz != rate_hz:
            wave_SC = soxr.resample(wave_SC, rate_here_hz, rate_hz, quality="HQ")
        return np.ascontiguousarray(wave_SC.T, dtype=np.float32)
