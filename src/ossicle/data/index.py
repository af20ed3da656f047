"""The index of a prepared dataset: where every utterance lies in the shards, readable in any order."""

import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ossicle.core.errors import DataError
from ossicle.data.cache import ShardCache
from ossicle.data.store import Storage, is_remote, local_path
from ossicle.data.utterance import Utterance

_COLUMNS = [
    ("shard", "<u4"),
    ("audio_offset", "<u8"),
    ("audio_bytes", "<u4"),
    ("meta_offset", "<u8"),
    ("meta_bytes", "<u4"),
    ("samples", "<u8"),
    ("speaker", "<u4"),
    ("language", "<u2"),
    ("digest", "<u8"),
]
INDEX_DTYPE = cast("np.dtype[np.void]", np.dtype(_COLUMNS))
"""One row an utterance; offsets are of the members' bytes in the tar, digest is blake2b-8 of the audio's bytes."""

CARD_NAME = "dataset.json"
INDEX_NAME = "index.npy"
_MAX_OPEN = 64


class DatasetIndex:
    """One split of a prepared dataset. Made by :meth:`load`; pickles as its path.

    Attributes:
        path: The dataset's directory; of a remote one, where its copies lie.
        split: The split's name.
        rows: INDEX_DTYPE, shape (num_utterances,), mapped from the disk.
        shard_paths: The tars, in the order of the column ``shard``.
        speakers: Names, in the order of the column ``speaker``; the same for every split.
        languages: Codes, in the order of the column ``language``; the same for every split.
        rate_hz: Samples a second.
        content_hash: Hash of every utterance's audio and metadata in this split.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        rows: NDArray[np.void],
        *,
        shard_paths: tuple[Path, ...],
        speakers: tuple[str, ...],
        languages: tuple[str, ...],
        rate_hz: int,
        content_hash: str,
    ) -> None:
        self.path = path
        self.split = split
        self.rows = rows
        self.shard_paths = shard_paths
        self.speakers = speakers
        self.languages = languages
        self.rate_hz = rate_hz
        self.content_hash = content_hash
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        plain = np.asarray(rows)  # the same mapping: a memmap costs microseconds at every access
        self._shard_N, self._offset_N, self._bytes_N = plain["shard"], plain["audio_offset"], plain["audio_bytes"]

    @classmethod
    def load(
        cls, path: Path | str, split: str, cache: ShardCache | None = None, storage: Storage | None = None
    ) -> "DatasetIndex":
        """Open a split and check that its files are there and of the sizes that were written.

        Args:
            path: The dataset's directory, or a URL of it: file, http, https, s3, gs, hf or another of fsspec's.
            split: Name of the split.
            cache: Where shards behind a URL are kept on this machine; None for 20 GB in its temporary folder.
            storage: Options of the URL's file system.

        Raises:
            DataError: The directory is no prepared dataset, has no such split, or is damaged.
            MissingExtraError: The URL's client is not installed.
        """
        if is_remote(path):
            # a remote index is this class with other shards below it
            from ossicle.data.remote import RemoteIndex  # noqa: PLC0415

            return RemoteIndex.connect(str(path), split, cache, storage)
        path = local_path(path)
        mend = f"ossicle prepare corpus=... output={path}"
        card, entry = read_entry(path, _card_bytes(path, mend), split, mend)
        folder = path / split
        shard_paths = tuple(folder / shard["name"] for shard in entry["shards"])
        for shard_path, shard in zip(shard_paths, entry["shards"], strict=True):
            size = shard_path.stat().st_size if shard_path.is_file() else None
            if size != shard["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes and should have {shard['bytes']}"
                raise DataError(f"{shard_path} {state}", f"delete {path / CARD_NAME}, then {mend}")
        rows = _map_rows(folder / INDEX_NAME, entry["num_utterances"], f"delete {path / CARD_NAME}, then {mend}")
        return cls(
            path,
            split,
            rows,
            shard_paths=shard_paths,
            speakers=tuple(card["speakers"]),
            languages=tuple(card["languages"]),
            rate_hz=card["rate_hz"],
            content_hash=entry["content_hash"],
        )

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Pickle as the path: a mapped file would travel as a copy of all its rows."""
        return type(self).load, (self.path, self.split)

    def __del__(self) -> None:
        """Close what was opened."""
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)

    @property
    def num_utterances(self) -> int:
        """How many utterances there are."""
        return len(self.rows)

    @property
    def num_samples(self) -> int:
        """How many samples they have together."""
        return int(self.rows["samples"].sum())

    @property
    def hours(self) -> float:
        """How long they are together."""
        return self.num_samples / self.rate_hz / 3600

    def read_audio(self, row: int) -> bytes:
        """The encoded audio of an utterance, by its row."""
        return self._read(int(self._shard_N[row]), int(self._offset_N[row]), int(self._bytes_N[row]))

    def audio_bytes(self, row: int) -> int:
        """Size of the encoded audio of an utterance."""
        return int(self._bytes_N[row])

    def read_audio_part(self, row: int, first: int, size: int) -> bytes:
        """Some of the encoded audio of an utterance: ``size`` bytes of it from ``first`` on."""
        return self._read(int(self._shard_N[row]), int(self._offset_N[row]) + first, size)

    def read_meta(self, row: int) -> Utterance:
        """What is known of an utterance, by its row."""
        try:
            return Utterance.from_json(self.read_meta_bytes(row))
        except (ValueError, KeyError, TypeError) as error:
            shard = self.shard_paths[int(self.rows[row]["shard"])]
            raise DataError(f"{shard}: the metadata of row {row} is damaged: {error}", self._mend(shard)) from error

    def read_meta_bytes(self, row: int) -> bytes:
        """The metadata of an utterance as it stands in the shard, by its row."""
        entry = self.rows[row]
        return self._read(int(entry["shard"]), int(entry["meta_offset"]), int(entry["meta_bytes"]))

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        path = self.shard_paths[shard]
        try:
            data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}", "check the disk and the file's permissions") from error
        if len(data) != size:
            raise DataError(f"{path} ends before byte {offset + size}", self._mend(path))
        return data

    def _descriptor(self, shard: int) -> int:
        # positioned reads share no file offset, so descriptors that a fork inherits stay good
        if shard not in self._descriptors:
            if len(self._descriptors) >= _MAX_OPEN:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[shard] = os.open(self.shard_paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors.move_to_end(shard)
        return self._descriptors[shard]

    def _mend(self, shard: Path) -> str:
        return f"delete {shard} and {self.path / CARD_NAME}, then ossicle prepare corpus=... output={self.path}"


def read_entry(where: Path | str, text: bytes, split: str, mend: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """A dataset's card, and what it says of a split.

    Args:
        where: The dataset, for errors.
        text: The card's bytes.
        split: Name of the split.
        mend: How a damaged dataset is mended.

    Raises:
        DataError: The card is damaged, or has no such split.
    """
    try:
        card = json.loads(text)
        missing = {"splits", "speakers", "languages", "rate_hz"} - set(card)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}/{CARD_NAME} cannot be read: {error}", mend) from error
    if missing:
        raise DataError(f"{where}/{CARD_NAME} lacks {', '.join(sorted(missing))}", mend)
    if split not in card["splits"]:
        names = ", ".join(card["splits"])
        raise DataError(f"{where} has no split {split!r}; it has {names}", "name one of these")
    return card, card["splits"][split]


def check_rows(rows: NDArray[np.void], where: Path | str, num_rows: int, mend: str) -> NDArray[np.void]:
    """The index's rows, if they are what the card promises.

    Raises:
        DataError: Another type of row, or another number of them.
    """
    if rows.dtype != INDEX_DTYPE or rows.shape != (num_rows,):
        raise DataError(f"{where} is not the index of {num_rows} utterances that was written", mend)
    return rows


def _card_bytes(path: Path, mend: str) -> bytes:
    try:
        return (path / CARD_NAME).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} holds no prepared dataset: there is no {CARD_NAME}", mend) from error
    except OSError as error:
        raise DataError(f"{path / CARD_NAME} cannot be read: {error}", mend) from error


def _map_rows(path: Path, num_rows: int, mend: str) -> NDArray[np.void]:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}", mend) from error
    return check_rows(rows, path, num_rows, mend)
