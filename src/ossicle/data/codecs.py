"""How audio is stored in shards: FLAC, Opus or plain samples. Each writes equal samples as equal bytes."""

import io
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np
import soundfile
from numpy.typing import NDArray
from typing_extensions import override

from ossicle.core.errors import ConfigError, DataError
from ossicle.data.audio import RATE_HZ, encode_flac

_PAGE_HEADER = 27
_SERIAL = struct.pack("<I", 1)
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Codec(ABC):
    """A way to store mono audio of 16 bits at 16 kHz.

    Attributes:
        name: The word that users write.
        suffix: What audio members of a shard end with.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]

    @abstractmethod
    def encode(self, pcm_S: NDArray[np.int16]) -> bytes:
        """A whole file of the samples, int16, shape (S,); :func:`ossicle.data.audio.decode` reads it."""


@final
class Flac(Codec):
    """Lossless, about half the size of the samples, quick to decode and to seek."""

    name = "flac"
    suffix = "flac"

    @override
    def encode(self, pcm_S: NDArray[np.int16]) -> bytes:
        return encode_flac(pcm_S)


@final
class Opus(Codec):
    """Lossy, about an eighth of the size of the samples, in Ogg pages; several times slower to decode than FLAC.

    The encoder's delay is cut off by its pre-skip, so that sample n of what is decoded is sample n of what was given.
    The decoder warms up for 80 ms before a crop: a crop agrees with the slice of the whole to about 1e-3.
    """

    name = "opus"
    suffix = "opus"

    @override
    def encode(self, pcm_S: NDArray[np.int16]) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, pcm_S, RATE_HZ, format="OGG", subtype="OPUS")
        return with_fixed_serial(file.getvalue())


@final
class Pcm(Codec):
    """The samples themselves, behind the 44 bytes of a WAV header: a crop is a view of the bytes."""

    name = "pcm"
    suffix = "wav"

    @override
    def encode(self, pcm_S: NDArray[np.int16]) -> bytes:
        data = pcm_S.astype("<i2", copy=False).tobytes()
        layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
        return (
            struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE")
            + layout
            + struct.pack("<4sI", b"data", len(data))
            + data
        )


CODECS: Mapping[str, Codec] = {codec.name: codec for codec in (Flac(), Opus(), Pcm())}
"""Every codec by its name."""


def codec_named(name: str) -> Codec:
    """The codec that a user names.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in CODECS:
        raise ConfigError(f"audio_format={name} is unknown", f"choose from {', '.join(CODECS)}")
    return CODECS[name]


def with_fixed_serial(data: bytes) -> bytes:
    """The same Ogg stream under one fixed serial number, where the encoder draws one anew for every file.

    Pages and their checksum (polynomial 0x04c11db7, neither start value nor reflection): RFC 3533, section 6.

    Raises:
        DataError: The bytes are no Ogg stream.
    """
    pages = bytearray(data)
    place = 0
    while place < len(pages):
        lacing = place + _PAGE_HEADER
        if pages[place : place + 4] != b"OggS" or lacing > len(pages):
            raise DataError(f"byte {place} of the encoded audio begins no Ogg page", "report it: libsndfile wrote it")
        body = lacing + pages[place + 26]
        end = body + sum(pages[lacing:body])
        pages[place + 14 : place + 18] = _SERIAL
        pages[place + 22 : place + 26] = bytes(4)
        pages[place + 22 : place + 26] = struct.pack("<I", _ogg_checksum(bytes(pages[place:end])))
        place = end
    return bytes(pages)


def _ogg_checksum(page: bytes) -> int:
    # zlib computes the same polynomial with every bit order reversed, and with start and end values of all ones
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
