"""Shards: plain webdataset tars of audio and JSON members, whole or absent, with the place of every member."""

import errno
import hashlib
import io
import struct
import tarfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ossicle.core.errors import DataError
from ossicle.core.files import atomic_write
from ossicle.data.codecs import Codec, Flac
from ossicle.data.utterance import Sample

_BLOCK = 512
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Member:
    """Where an utterance lies in its shard.

    Args:
        audio_offset: First byte of the audio in the tar.
        audio_bytes: Size of the audio.
        meta_offset: First byte of the metadata.
        meta_bytes: Size of the metadata.
        samples: Length in samples.
        speaker: Speaker's name.
        language: Language code.
        digest: blake2b of the audio's bytes, 64 bits.
    """

    audio_offset: int
    audio_bytes: int
    meta_offset: int
    meta_bytes: int
    samples: int
    speaker: str
    language: str
    digest: int


def digest_bytes(data: bytes) -> int:
    """blake2b with 8 bytes of output, as an unsigned little-endian integer."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def hashed_part(digest: int, meta: bytes) -> bytes:
    """What an utterance adds to its shard's content hash, a blake2b with 16 bytes of output."""
    return struct.pack("<QI", digest, len(meta)) + meta


@contextmanager
def naming_full_disk(path: Path) -> Generator[None]:
    """Turn a full disk into an error that says where, and what to do.

    Raises:
        DataError: The block ran out of disk or quota.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        mend = "make room, then run the same command again: finished shards are kept"
        raise DataError(f"the disk is full: {path} could not be written", mend) from error


class ShardWriter:
    """Writes samples to an open file as a webdataset tar; equal samples give equal bytes.

    Args:
        file: Where the tar goes, opened for writing in binary and at its start.
        codec: How audio is stored; None: FLAC.
    """

    def __init__(self, file: IO[bytes], codec: Codec | None = None) -> None:
        self._codec = codec or Flac()
        # members as webdataset's writer makes them, which would load torch into every worker; a stream passes each
        # header and data through in order, so the offsets follow from the sizes
        self._tar = tarfile.open(fileobj=file, mode="w|")  # noqa: SIM115  closed by close()
        self._offset = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self.members: list[Member] = []

    @property
    def content_hash(self) -> str:
        """Hash of every member's digest and metadata so far, in hex."""
        return self._hash.hexdigest()

    def write(self, sample: Sample) -> None:
        """Append a sample as the members KEY.SUFFIX, by the codec, and KEY.json."""
        utterance = sample.utterance
        audio = self._codec.encode(sample.pcm_S)
        meta = utterance.to_json()
        self._add(f"{utterance.key}.{self._codec.suffix}", audio)
        self._add(f"{utterance.key}.json", meta)
        audio_offset = self._offset + _BLOCK
        meta_offset = audio_offset + _padded(len(audio)) + _BLOCK
        self._offset = meta_offset + _padded(len(meta))
        digest = digest_bytes(audio)
        self._hash.update(hashed_part(digest, meta))
        place = (audio_offset, len(audio), meta_offset, len(meta))
        self.members.append(Member(*place, len(sample.pcm_S), utterance.speaker, utterance.language, digest))

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        member.mode = 0o444
        self._tar.addfile(member, io.BytesIO(data))

    def close(self) -> None:
        """Write the tar's end."""
        self._tar.close()

    def abandon(self) -> None:
        """Close the tar whatever becomes of it; nothing happens where it is closed."""
        with suppress(OSError):
            self._tar.close()


@contextmanager
def open_shard(path: Path, codec: Codec | None = None) -> Generator[ShardWriter]:
    """Write a shard that appears under its name only when the block ends well.

    Args:
        path: Where it goes.
        codec: How audio is stored; None: FLAC.

    Raises:
        DataError: The disk is full; nothing half-written is left.
    """
    with naming_full_disk(path), atomic_write(path) as file, ExitStack() as half_written:
        writer = ShardWriter(file, codec)
        # left open, the tar would write to a closed file when it is collected
        half_written.callback(writer.abandon)
        yield writer
        writer.close()


def remove_parts(folder: Path) -> None:
    """Remove what writers that were killed have left half-written in a folder."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def shard_name(number: int) -> str:
    """The file name of a split's shard by its number."""
    return f"shard-{number:06d}.tar"


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
