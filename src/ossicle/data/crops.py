"""Crops of encoded audio: as few bytes as hold them, decoded into the row of a batch."""

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import soundfile
from numpy.typing import NDArray
from typing_extensions import override

from ossicle.core.errors import DataError
from ossicle.data import flac
from ossicle.data.audio import decode, plain_place

_WHOLE_BYTES = (
    1 << 17
)  # audio of up to this size is read at once: a second request costs as much as the bytes it spares
_MEND = "prepare the dataset again"


class Crop(ABC):
    """The encoded bytes of one crop."""

    @abstractmethod
    def decode_into(self, out_S: NDArray[np.float32]) -> None:
        """Decode the crop.

        Args:
            out_S: Takes the samples, in [-1, 1], float32, shape (S,), contiguous.

        Raises:
            DataError: The bytes do not decode.
        """


@final
@dataclass(frozen=True, slots=True)
class FlacFrames(Crop):
    """The FLAC frames that hold a crop.

    Args:
        stream: They, behind a head.
        num_before: Samples before the crop.
    """

    stream: bytes
    num_before: int

    @override
    def decode_into(self, out_S: NDArray[np.float32]) -> None:
        try:
            with _Onward(io.BytesIO(self.stream)) as file:
                if self.num_before:
                    file.read(out=np.empty(self.num_before, np.float32))
                num_read = len(file.read(out=out_S))
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise DataError(f"the audio does not decode: {error}", _MEND) from error
        if num_read != len(out_S):
            raise DataError(f"the audio gave {num_read} samples for {len(out_S)}", _MEND)


@final
@dataclass(frozen=True, slots=True)
class PlainSamples(Crop):
    """The 16-bit samples of a crop, little-endian.

    Args:
        data: Their bytes.
    """

    data: bytes

    @override
    def decode_into(self, out_S: NDArray[np.float32]) -> None:
        pcm_S = np.frombuffer(self.data, "<i2")
        if len(pcm_S) != len(out_S):
            raise DataError(f"the audio is cut off: {len(pcm_S)} of {len(out_S)} samples are there", _MEND)
        np.multiply(pcm_S, np.float32(1 / 32768), out=out_S)


@final
@dataclass(frozen=True, slots=True)
class WholeFile(Crop):
    """A crop for which all of the encoded audio is needed.

    Args:
        data: The whole file.
        start: First sample of the crop.
    """

    data: bytes
    start: int

    @override
    def decode_into(self, out_S: NDArray[np.float32]) -> None:
        out_S[:] = decode(self.data, self.start, len(out_S))


def encoded_crop(read: flac.Reader, num_bytes: int, start: int, num_samples: int) -> Crop:
    """Read what a crop needs of encoded mono audio, and no more where the format tells where that lies.

    Args:
        read: Reads some of the encoded audio.
        num_bytes: Size of all of it.
        start: First sample of the crop.
        num_samples: Length of the crop.

    Raises:
        DataError: The bytes cannot be read.
    """
    reach = read
    if num_bytes <= _WHOLE_BYTES:
        data = read(0, num_bytes)

        def reach(first: int, size: int) -> bytes:
            return data[first : first + size]

    head = reach(0, min(num_bytes, flac.HEAD_BYTES))
    if head[:4] == b"fLaC":
        layout = flac.Layout.of(head, num_bytes)
        if layout is not None and 0 <= start <= start + num_samples <= layout.num_samples:
            found = flac.cut(reach, layout, start, num_samples)
            if found is not None:
                return FlacFrames(*found)
    elif head[:4] == b"RIFF":
        place = plain_place(head)
        if place is not None and 0 <= start <= start + num_samples <= place[1]:
            return PlainSamples(reach(place[0] + 2 * start, 2 * num_samples))
    return WholeFile(reach(0, num_bytes), start)


class _Onward(soundfile.SoundFile):
    """Audio that is read from its beginning on.

    After each read soundfile seeks to where it stands, if it can seek; in FLAC that decodes a frame or more anew.
    """

    @override
    def seekable(self) -> bool:
        return False
