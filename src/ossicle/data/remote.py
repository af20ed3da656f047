"""A prepared dataset behind a URL: its index on this machine, its shards in the cache or read in ranges."""

import hashlib
import io
import logging
import os
import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ossicle.core.errors import DataError
from ossicle.core.files import hash_json
from ossicle.data.cache import ShardCache, touch
from ossicle.data.index import CARD_NAME, INDEX_NAME, DatasetIndex, check_rows, read_entry
from ossicle.data.retry import client_errors
from ossicle.data.shards import digest_bytes, hashed_part
from ossicle.data.store import RemoteFiles, Storage

_LOG = logging.getLogger(__name__)
_MAX_OPEN = 16  # the disk keeps what is open: what has given way in the cache is let go soon
_RANGED_S = 600.0


class RemoteShards:
    """A split's shards behind a URL, whole in the cache or read in ranges.

    A shard is fetched whole, block by block, and every utterance in it held against its digest: what differs is fetched
    once more and, where it still differs, blanked, so that every process quarantines that utterance and reads the
    others. Metadata are held against the shard's hash, and fetched once more alike. Where the cache keeps nothing or
    has no room, an utterance is one ranged read, held against its digest. A shard that cannot be fetched is read so too
    for the next ten minutes: what is left of it is used.

    Args:
        files: The dataset's files.
        cache: Where copies lie.
        folder: The split's folder in the cache.
        split: The split's folder behind the URL.
        names: File name of each shard.
        sizes: Bytes of each shard.
        hashes: Content hash of each shard.
        rows: The split's index.
    """

    def __init__(
        self,
        files: RemoteFiles,
        cache: ShardCache,
        *,
        folder: str,
        split: str,
        names: Sequence[str],
        sizes: Sequence[int],
        hashes: Sequence[str],
        rows: NDArray[np.void],
    ) -> None:
        self.files = files
        self.cache = cache
        self.folder = folder
        self.split = split
        self.names = names
        self.sizes = sizes
        self.hashes = hashes
        self.rows = rows
        self._open: OrderedDict[int, int] = OrderedDict()
        self._ranged: dict[int, float] = {}

    def __del__(self) -> None:
        """Close what was opened."""
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def read(self, shard: int, offset: int, size: int, digest: int | None) -> bytes:
        """Bytes of a shard.

        Args:
            shard: Its number.
            offset: First byte.
            size: How many.
            digest: Their blake2b-8, where it is known.

        Raises:
            DataError: They cannot be had, or are not those that were written.
        """
        descriptor = self._descriptor(shard)
        if descriptor is None:
            total = self.sizes[shard]
            return self.files.read(self._name(shard), offset, size, total=total, digest=digest)
        data = os.pread(descriptor, size, offset)
        if len(data) != size:
            raise DataError(f"{self._name(shard)} ends before byte {offset + size}", "prepare the dataset again")
        return data

    def _name(self, shard: int) -> str:
        return f"{self.split}/{self.names[shard]}"

    def _descriptor(self, shard: int) -> int | None:
        """An open copy of a shard, or None where it is to be read in ranges."""
        if shard in self._open:
            self._open.move_to_end(shard)
            touch(self._open[shard])
            return self._open[shard]
        if self.cache.max_bytes == 0 or self._ranged.get(shard, 0.0) > time.monotonic():
            return None
        try:
            key = f"{self.folder}/{self.names[shard]}"
            descriptor = self.cache.open(key, self.sizes[shard], partial(self._fetch, shard))
        except DataError as error:
            _LOG.warning("%s is read in ranges for now: %s", self._name(shard), error.problem)
            descriptor = None
        if descriptor is None:
            self._ranged[shard] = time.monotonic() + _RANGED_S
            return None
        while len(self._open) >= _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = descriptor
        return descriptor

    def _fetch(self, shard: int, file: BinaryIO) -> None:
        self.files.download(self._name(shard), self.sizes[shard], file)
        rows = np.flatnonzero(self.rows["shard"] == shard).tolist()
        for row in rows:
            entry = self.rows[row]
            offset, size, digest = int(entry["audio_offset"]), int(entry["audio_bytes"]), int(entry["digest"])
            file.seek(offset)
            if digest_bytes(file.read(size)) != digest:
                file.seek(offset)
                file.write(self._again(shard, row, offset, size, digest))
        if self._content(rows, file) != self.hashes[shard]:
            for row in rows:
                offset, size = int(self.rows[row]["meta_offset"]), int(self.rows[row]["meta_bytes"])
                file.seek(offset)
                file.write(self.files.read(self._name(shard), offset, size, total=self.sizes[shard]))
            if self._content(rows, file) != self.hashes[shard]:
                problem = f"the metadata in {self._name(shard)} are not those that were written"
                raise DataError(problem, "prepare the dataset again and copy it there")

    def _content(self, rows: Sequence[int], file: BinaryIO) -> str:
        """The hash of a shard's content, by the index's digests and the metadata that came."""
        content = hashlib.blake2b(digest_size=16)
        for row in rows:
            file.seek(int(self.rows[row]["meta_offset"]))
            meta = file.read(int(self.rows[row]["meta_bytes"]))
            content.update(hashed_part(int(self.rows[row]["digest"]), meta))
        return content.hexdigest()

    def _again(self, shard: int, row: int, offset: int, size: int, digest: int) -> bytes:
        """What differs from its digest, once more; blank where it still does."""
        name = self._name(shard)
        try:
            return self.files.read_once(name, offset, size, total=self.sizes[shard], digest=digest)
        except client_errors() as error:
            _LOG.warning("row %d of %s differs from its digest and is left out: %s", row, name, error)
            return bytes(size)


class RemoteIndex(DatasetIndex):
    """A split behind a URL. Made by :meth:`DatasetIndex.load`; pickles as its URL.

    Args:
        shards: The split's shards.
        storage: Options of the URL's file system.
        card: The dataset's card.
        entry: What it says of the split.
    """

    def __init__(
        self, shards: RemoteShards, storage: Storage | None, card: Mapping[str, Any], entry: Mapping[str, Any]
    ) -> None:
        folder = shards.cache.folder / shards.folder
        super().__init__(
            folder.parent,
            shards.split,
            shards.rows,
            shard_paths=tuple(folder / name for name in shards.names),
            speakers=tuple(card["speakers"]),
            languages=tuple(card["languages"]),
            rate_hz=card["rate_hz"],
            content_hash=entry["content_hash"],
        )
        self.shards = shards
        self.storage = storage

    @classmethod
    def connect(cls, url: str, split: str, cache: ShardCache | None = None, storage: Storage | None = None) -> Self:
        """Open a split behind a URL and check, where the store lists its files, that they are as they were written.

        Args:
            url: The dataset's folder.
            split: Name of the split.
            cache: Where copies lie on this machine; None for 20 GB in its temporary folder.
            storage: Options of the URL's file system.

        Raises:
            DataError: The URL holds no prepared dataset, has no such split, or is damaged.
            MissingExtraError: The URL's client is not installed.
        """
        files = RemoteFiles(url, storage)
        cache = cache or ShardCache()
        mend = f"prepare the dataset again and copy it to {files.url}"
        text = files.read_all(CARD_NAME)
        card, entry = read_entry(files.url, text, split, mend)
        # the card's hash in the name: a dataset that was written anew at its old URL shares nothing with old copies
        readable = re.sub(r"[^A-Za-z0-9]+", "-", files.url)[-40:].strip("-")
        folder = f"{readable}-{hash_json([files.url, text.decode('utf-8', 'replace')])}/{split}"
        listed = files.sizes(split)
        if listed is not None:
            _check_sizes(files.name_of(split), {shard["name"]: shard["bytes"] for shard in entry["shards"]}, listed)
        size = files.identity(f"{split}/{INDEX_NAME}")[0] if listed is None else listed.get(INDEX_NAME)
        rows = _rows(files, cache, f"{split}/{INDEX_NAME}", f"{folder}/{INDEX_NAME}", size)
        shards = RemoteShards(
            files,
            cache,
            folder=folder,
            split=split,
            names=tuple(shard["name"] for shard in entry["shards"]),
            sizes=tuple(shard["bytes"] for shard in entry["shards"]),
            hashes=tuple(shard["content_hash"] for shard in entry["shards"]),
            rows=check_rows(rows, files.name_of(f"{split}/{INDEX_NAME}"), entry["num_utterances"], mend),
        )
        return cls(shards, storage, card, entry)

    @override
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Pickle as the URL."""
        return type(self).connect, (self.shards.files.url, self.split, self.shards.cache, self.storage)

    @override
    def read_audio(self, row: int) -> bytes:
        entry = self.rows[row]
        place = (int(entry["shard"]), int(entry["audio_offset"]), int(entry["audio_bytes"]))
        return self.shards.read(*place, int(entry["digest"]))

    @override
    def _read(self, shard: int, offset: int, size: int) -> bytes:
        return self.shards.read(shard, offset, size, None)


def _check_sizes(where: str, wanted: Mapping[str, int], listed: Mapping[str, int]) -> None:
    for name, size in wanted.items():
        found = listed.get(name)
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes and should have {size}"
            raise DataError(f"{where}/{name} {state}", "prepare the dataset again and copy it there")


def _rows(files: RemoteFiles, cache: ShardCache, name: str, key: str, size: int | None) -> NDArray[np.void]:
    """The index, mapped from a copy on this machine; of a copy without a name where the cache keeps none."""
    whole = files.read_all(name) if size is None else b""
    size = len(whole) if size is None else size

    def fill(file: BinaryIO) -> None:
        if whole:
            file.write(whole)
        else:
            files.download(name, size, file)

    descriptor = cache.open(key, size, fill)
    file = cache.scratch(fill) if descriptor is None else os.fdopen(descriptor, "rb")
    with file:
        file.seek(0)
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)  # of another version, it is no header of ours
            return cast("NDArray[np.void]", np.memmap(file, dtype=dtype, mode="r", offset=file.tell(), shape=shape))
        except (ValueError, EOFError, io.UnsupportedOperation) as error:
            cache.drop(key)
            raise DataError(f"{files.name_of(name)} cannot be read: {error}", "prepare the dataset again") from error
