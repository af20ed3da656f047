"""Files behind a URL, read whole, in ranges or as a stream, with patience."""

import io
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, cast

import fsspec
import fsspec.asyn
from typing_extensions import Buffer, override

from ossicle.core.errors import ConfigError, MissingExtraError
from ossicle.core.files import hash_json
from ossicle.data.retry import DamagedReadError, Retry, ShortReadError
from ossicle.data.shards import digest_bytes

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")
_BLOCK_BYTES = 8 << 20
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp",
    "https": "aiohttp",
}  # fmt: skip
# fsspec's own hook leaves a lock that another thread held at the fork locked for ever in the child
os.register_at_fork(after_in_child=fsspec.asyn.reset_lock)

Storage = Mapping[str, object]
"""Options of the file system behind a URL, such as endpoint_url; accounts belong in its client's own places."""


class _FileSystem(Protocol):
    """What is asked of fsspec."""

    protocol: str | tuple[str, ...]

    def info(self, path: str) -> Mapping[str, object]: ...

    def ls(self, path: str, detail: bool) -> list[Mapping[str, object]]: ...

    def cat_file(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes: ...

    def open(self, path: str, mode: str) -> BinaryIO: ...


def is_remote(url: Path | str) -> bool:
    """Whether a name is a URL of another machine's file, and not a path or a file:// URL of this one's."""
    return isinstance(url, str) and "://" in url and not url.startswith(("file://", "local://"))


def local_path(url: Path | str) -> Path:
    """The path that a name without a URL's scheme, or with file://, means."""
    if isinstance(url, str):
        for scheme in ("file://", "local://"):
            url = url.removeprefix(scheme)
    return Path(url)


class RemoteFiles:
    """Files below one URL.

    A client is made in each process that reads: those of object stores do not survive a fork.

    Args:
        url: The folder, or the file itself where names are empty.
        storage: Options of its file system.
        retry: How often and how patiently reads are tried again.
    """

    def __init__(self, url: str, storage: Storage | None = None, retry: Retry | None = None) -> None:
        self.url = url.rstrip("/")
        self.storage = dict(storage or {})
        self.retry = retry or Retry()
        self._opened: tuple[int, _FileSystem, str] | None = None
        self._told_whole = False

    def __reduce__(self) -> tuple[object, tuple[str, Storage, Retry]]:
        """Pickle without the client."""
        return type(self), (self.url, self.storage, self.retry)

    def name_of(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.url}/{name}" if name else self.url

    def read_all(self, name: str) -> bytes:
        """A small file as a whole.

        Raises:
            DataError: It is not there, or cannot be read.
        """
        fs, root = self._client()
        return self._try(f"reading {self.name_of(name)}", lambda: fs.cat_file(_joined(root, name)))

    def read(self, name: str, start: int, size: int, *, total: int | None = None, digest: int | None = None) -> bytes:
        """A range of a file.

        Args:
            name: The file.
            start: First byte.
            size: How many bytes.
            total: Bytes of the whole file, where they are known: a server without ranges is then understood.
            digest: blake2b-8 of the bytes, where it is known.

        Raises:
            DataError: The file is not there or cannot be read, is too short, or holds other bytes.
        """
        what = f"reading {size} bytes at {start} of {self.name_of(name)}"
        return self._try(what, lambda: self.read_once(name, start, size, total=total, digest=digest))

    def read_once(
        self, name: str, start: int, size: int, *, total: int | None = None, digest: int | None = None
    ) -> bytes:
        """The same, tried once.

        Raises:
            ShortReadError: Fewer bytes came.
            DamagedReadError: The bytes have another digest.
        """
        if size == 0:
            return b""
        fs, root = self._client()
        data = fs.cat_file(_joined(root, name), start=start, end=start + size)
        if len(data) == total and total > size:
            if not self._told_whole:
                self._told_whole = True
                _LOG.warning("%s does not serve ranges: whole files travel for each read", self.url)
            data = data[start : start + size]
        if len(data) != size:
            raise ShortReadError(f"{len(data)} of {size} bytes came")
        if digest is not None and digest_bytes(data) != digest:
            raise DamagedReadError(f"{size} bytes came that are not those that were written")
        return data

    def download(self, name: str, size: int, file: BinaryIO) -> None:
        """A whole file of known size, in blocks: what a connection dropped is fetched again from the last block on.

        Raises:
            DataError: It is not there, cannot be read, or is shorter.
        """
        file.writelines(
            self.read(name, start, min(_BLOCK_BYTES, size - start), total=size)
            for start in range(0, size, _BLOCK_BYTES)
        )

    def sizes(self, folder: str) -> dict[str, int] | None:
        """Size of every file in a folder by its name, or None where the store lists none, as web servers do not.

        Raises:
            DataError: The folder cannot be listed.
        """
        fs, root = self._client()
        if {"http", "https"} & set(_protocols(fs)):
            return None
        listed = self._try(f"listing {self.name_of(folder)}", lambda: fs.ls(_joined(root, folder), detail=True))
        return {str(e["name"]).rpartition("/")[2]: cast("int", e["size"]) for e in listed if e["type"] == "file"}

    def identity(self, name: str) -> tuple[int | None, str]:
        """A file's size, None where the server does not say, and a hash that changes when the file does.

        Raises:
            DataError: It is not there, or the server does not answer.
        """
        fs, root = self._client()
        found = self._try(f"asking for {self.name_of(name)}", lambda: fs.info(_joined(root, name)))
        size = found.get("size")
        marks = {
            key: str(found[key]) for key in ("size", "ETag", "etag", "LastModified", "mtime", "md5") if key in found
        }
        return (size if isinstance(size, int) else None), hash_json([self.name_of(name), marks])

    def stream(self, name: str, size: int | None) -> BinaryIO:
        """A file from its start to its end.

        Args:
            name: The file.
            size: Its size; where it is None, a connection that drops cannot be taken up again.

        Raises:
            DataError: On opening or on reading: it is not there, or cannot be read.
        """
        if size is not None:
            return cast("BinaryIO", io.BufferedReader(_Ranges(self, name, size), _BLOCK_BYTES))
        fs, root = self._client()
        return self._try(f"opening {self.name_of(name)}", lambda: fs.open(_joined(root, name), "rb"))

    def _try(self, what: str, action: Callable[[], _T]) -> _T:
        """Carry out a read with patience; a client takes up its options at the first one, and refuses them then."""
        try:
            return self.retry.call(what, action)
        except TypeError as error:
            if not self.storage:
                raise
            raise _misfit(self.url, self.storage, error) from error

    def _client(self) -> tuple[_FileSystem, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), *_connect(self.url, self.storage))
        return self._opened[1:]


class _Ranges(io.RawIOBase):
    """A remote file as an open one: each read is a range, tried again until it comes."""

    def __init__(self, files: RemoteFiles, name: str, size: int) -> None:
        super().__init__()
        self._files = files
        self._name = name
        self._size = size
        self._place = 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer)
        wanted = min(len(view), self._size - self._place)
        view[:wanted] = self._files.read(self._name, self._place, wanted, total=self._size)
        self._place += wanted
        return wanted


def _connect(url: str, storage: Storage) -> tuple[_FileSystem, str]:
    """The client of a URL, and the path that it knows the URL by."""
    protocol = url.partition("://")[0]
    options = dict(storage)
    if protocol in {"s3", "s3a"}:
        # one loop of retries is enough: botocore's and s3fs's inside ours would be a hundred tries
        options = {"config_kwargs": {"retries": {"total_max_attempts": 1}}, **options}
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise MissingExtraError(_PACKAGES.get(protocol, protocol), "remote", f"reading {url}") from error
    except (ValueError, TypeError) as error:
        raise _misfit(url, storage, error) from error
    if protocol in {"s3", "s3a"}:
        fs.retries = 1
    return cast("_FileSystem", fs), path.rstrip("/")


def _misfit(url: str, storage: Storage, error: Exception) -> ConfigError:
    problem = f"{url} cannot be opened with the options {sorted(storage)}: {error}"
    return ConfigError(
        problem, "name a path or a URL such as s3://, gs://, hf:// or https://, and its client's options"
    )


def _protocols(fs: _FileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _joined(root: str, name: str) -> str:
    return f"{root}/{name}" if name else root
