"""Shards named by URLs alone: their endless order, and how each is opened."""

import io
import logging
import os
import tarfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, cast

import braceexpand
from torch.utils.data import IterableDataset
from typing_extensions import override
from webdataset.gopen import gopen
from webdataset.shardlists import SimpleShardList

from ossicle.core.errors import ConfigError, DataError
from ossicle.core.seeds import derive_seed
from ossicle.data.cache import ShardCache
from ossicle.data.quarantine import Quarantine
from ossicle.data.store import RemoteFiles, Storage, is_remote, local_path

_LOG = logging.getLogger(__name__)
_PIPE = "pipe:"


@dataclass(frozen=True, slots=True)
class Place:
    """A shard in an epoch.

    Args:
        number: Its place in the endless sequence.
        epoch: The epoch.
        url: The shard.
    """

    number: int
    epoch: int
    url: str


class EndlessShards(IterableDataset[Place]):
    """The shards of every epoch one after another, each epoch in an order that (seed, epoch) decides.

    Args:
        urls: The shards.
        seed: Seeds the orders.
        first: Place to begin at.
    """

    def __init__(self, urls: tuple[str, ...], seed: int, first: int) -> None:
        super().__init__()
        self.urls = urls
        self.seed = seed
        self.first = first

    @override
    def __iter__(self) -> Iterator[Place]:
        number = self.first
        while True:
            epoch, within = divmod(number, len(self.urls))
            shards = list(SimpleShardList(list(self.urls), seed=derive_seed(self.seed, "shards", epoch)))
            for shard in shards[within:]:
                yield Place(number, epoch, shard["url"])
                number += 1


class Sources:
    """A list of shards and the ways to them.

    Args:
        urls: Paths, URLs or ``pipe:`` commands, braces expanded: one text or several.
        max_member_bytes: Largest member of a shard that is read.
        storage: Options of the URLs' file systems.
        cache: Where shards behind URLs are kept, or None to read them from afar.

    Raises:
        ConfigError: No shard is named, or the braces do not match.
    """

    def __init__(
        self, urls: str | Iterable[str], *, max_member_bytes: int, storage: Storage | None, cache: ShardCache | None
    ) -> None:
        self.urls = expand(urls)
        self.max_member_bytes = max_member_bytes
        self.storage = storage
        self.cache = cache

    def endless(self, seed: int, floor: int, streams: int) -> EndlessShards:
        """The endless sequence from the last multiple of ``streams`` before ``floor`` on.

        A place then belongs to the same stream wherever the sequence is begun.
        """
        return EndlessShards(self.urls, seed, floor // streams * streams)

    def opened(self, places: Iterable[Place], quarantine: Quarantine) -> Generator[tuple[Place, BinaryIO]]:
        """Each place with its shard opened for reading; one that cannot be opened is quarantined and has no bytes.

        A shard that goes to the cache is fetched while the one before it is read.
        """
        with ThreadPoolExecutor(1) as fetcher:
            waiting: deque[tuple[Place, Future[BinaryIO]]] = deque()
            places = iter(places)
            try:
                while True:
                    while len(waiting) < 2 and (place := next(places, None)) is not None:
                        waiting.append((place, self._submit(fetcher, place.url)))
                    if not waiting:
                        return
                    place, future = waiting.popleft()
                    yield place, _result(place, future, quarantine)
            finally:
                for _, future in waiting:
                    if not future.cancel():
                        future.add_done_callback(_close)

    def open(self, url: str) -> BinaryIO:
        """A shard from its start to its end.

        Raises:
            DataError: It is not there, or cannot be read.
            MissingExtraError: The URL's client is not installed.
        """
        if url.startswith(_PIPE):
            return cast("BinaryIO", _Piped(url))
        if not is_remote(url):
            try:
                return local_path(url).open("rb")
            except OSError as error:
                raise DataError(f"{url} cannot be read: {error}", "check data.urls and the disk") from error
        files = RemoteFiles(url, self.storage)
        size, mark = files.identity("")
        if size is not None and self.cache is not None:
            name = url.rpartition("/")[2][-60:]
            descriptor = self.cache.open(f"streamed/{mark}-{name}", size, partial(files.download, "", size))
            if descriptor is not None:
                return os.fdopen(descriptor, "rb")
        return files.stream("", size)

    def _submit(self, fetcher: ThreadPoolExecutor, url: str) -> Future[BinaryIO]:
        if url.startswith(_PIPE):  # a command is started when it is its turn
            return _Late(partial(self.open, url))
        return fetcher.submit(self.open, url)


class _Late(Future[BinaryIO]):
    """A result that is made when it is asked for."""

    def __init__(self, make: partial[BinaryIO]) -> None:
        super().__init__()
        self._make = make

    @override
    def result(self, timeout: float | None = None) -> BinaryIO:
        return self._make()


class _Piped(io.RawIOBase):
    """What a command writes; that it failed is an error at its end."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._pipe = gopen(url)
        self._told = False

    def read(self, size: int = -1, /) -> bytes:
        """Read on."""
        try:
            return self._pipe.read(size)
        except OSError as error:
            self._told = True
            raise OSError(self._failure()) from error

    @override
    def close(self) -> None:
        if self.closed:
            return
        super().close()
        try:
            self._pipe.close()
        except OSError as error:
            if not self._told:
                raise OSError(self._failure()) from error

    def _failure(self) -> str:
        return f"the command ended with status {getattr(self._pipe, 'status', 'unknown')}"


def expand(urls: str | Iterable[str]) -> tuple[str, ...]:
    """URLs with their braces expanded.

    Raises:
        ConfigError: No shard is named, or the braces do not match.
    """
    texts = [urls] if isinstance(urls, str) else list(urls)
    try:
        found = tuple(url for text in texts for url in braceexpand.braceexpand(text))
    except ValueError as error:
        raise ConfigError(f"data.urls={urls}: the braces do not match: {error}", "write {000000..000127}") from error
    if not any(found):
        raise ConfigError("data.urls names no shard", "name tars, as in DIR/shard-{000000..000127}.tar")
    return found


@contextmanager
def closed_well(file: BinaryIO, url: str, quarantine: Quarantine) -> Generator[None]:
    """Close a shard at the block's end; a command that failed is known only then, and quarantined.

    Args:
        file: The shard.
        url: Its name.
        quarantine: Takes the failure.
    """
    try:
        yield
    finally:
        try:
            file.close()
        except OSError as error:
            quarantine.add(url, str(error))


def _result(place: Place, future: Future[BinaryIO], quarantine: Quarantine) -> BinaryIO:
    try:
        return future.result()
    except DataError as error:
        quarantine.add(place.url, error.problem)
        return cast("BinaryIO", io.BytesIO(tarfile.NUL * 2 * tarfile.BLOCKSIZE))


def _close(future: Future[BinaryIO]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
