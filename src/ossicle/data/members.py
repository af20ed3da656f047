"""Audio members of a tar that comes as a stream: each in its turn, whatever is wrong with the others."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Self, cast

from typing_extensions import override

from ossicle.core.errors import DataError

AUDIO_SUFFIXES = frozenset({"flac", "wav", "opus", "ogg", "mp3", "aiff", "aif", "w64", "caf"})
"""Last suffixes of members that are audio; libsndfile then goes by the content."""

_ENDED = 64
_HEADER_ERROR: type[Exception] = tarfile.HeaderError
_END_MARK = "EOFHeaderError"  # tarfile's name, which it does not export, for the blocks of zeros that end a tar
_BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, DataError)


@dataclass(frozen=True, slots=True)
class Member:
    """An audio member of a tar, or what is wrong with it.

    Args:
        ordinal: Its number among the tar's audio members; -1 where the tar itself is broken.
        name: Its name, as it stands in the tar: a key, never a path that is opened.
        data: Its bytes, or None where it cannot be used.
        problem: Why it cannot be used.
    """

    ordinal: int
    name: str
    data: bytes | None
    problem: str = ""


class _TarInfo(tarfile.TarInfo):
    """A header whose damage is an error: tarfile takes it for the tar's end, and what follows would be lost unseen."""

    @classmethod
    @override
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _HEADER_ERROR as error:
            if type(error).__name__ == _END_MARK:
                raise
            raise _CutError(f"the tar breaks off: {error}") from error


class _CutError(tarfile.ReadError):
    """A tar without its end."""


class _Ending:
    """A file that raises when it is read on and on behind its end: a header may claim more bytes than there are."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._empty = 0

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        data = self._file.read(size)
        self._empty = 0 if data else self._empty + 1
        if self._empty > _ENDED:
            raise EOFError("the tar is shorter than its headers say")
        return data


def audio_members(file: BinaryIO, max_bytes: int) -> Iterator[Member]:
    """Every audio member of a tar, plain or compressed, in its order; nothing is written anywhere.

    webdataset's own expansion reads members of any size into memory and takes a tar that breaks off for one that has
    ended. Members that are no audio are passed over; links, duplicates, empty and oversized audio members are given
    with what is wrong with them, and so, last, is a tar that breaks off.

    Args:
        file: The tar, read from its start and never sought in.
        max_bytes: Largest member that is read.
    """
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=cast("BinaryIO", _Ending(file)), mode="r|*", tarinfo=_TarInfo) as tar:
            for info in tar:
                vars(tar)["members"] = []  # it would keep every header
                if info.isdir() or info.name.rpartition(".")[2].lower() not in AUDIO_SUFFIXES:
                    continue
                problem = _problem(info, max_bytes, seen)
                ordinal = len(seen)
                seen.add(f"{info.name}\0{ordinal}" if info.name in seen else info.name)
                yield Member(ordinal, info.name, None if problem else _data(tar, info), problem)
    except _BROKEN as error:
        problem = error.problem if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        yield Member(-1, "", None, problem)


def _problem(info: tarfile.TarInfo, max_bytes: int, seen: set[str]) -> str:
    if not info.isreg():
        return "is a link or a device"
    if info.name in seen:
        return "has the name of a member before it"
    if info.size == 0:
        return "is empty"
    if info.size > max_bytes:
        return f"has {info.size} bytes, more than data.max_member_mb allows"
    return ""


def _data(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None  # it is regular
    return file.read()
