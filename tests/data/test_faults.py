"""Faults that come while batches are read: each is counted, and what is left is what it would be without them."""

import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ossicle.core.batch import Batch
from ossicle.core.errors import DataError
from ossicle.data.index import DatasetIndex
from ossicle.data.module import ShardData
from tests.data.test_exactly_once import data_of
from tests.data.test_stream import id_of, members_of, shards_of, stream_of


@pytest.fixture
def copy(ramps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ramps, tmp_path / "copy"))


def epoch_of(data: ShardData) -> list[Batch]:
    return list(islice(iter(data.train_dataloader()), data.plan.first_position(1)))


def rows_named(log: Path) -> set[int]:
    return {int(json.loads(line)["name"].split(" row ")[1].split()[0]) for line in log.read_text().splitlines()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_is_cut_off_in_mid_epoch_loses_what_lies_behind_the_cut_and_nothing_else(
    copy: Path, tmp_path: Path, workers: int
) -> None:
    log = tmp_path / "bad.jsonl"
    data = data_of(copy, workers, quarantine=log, max_bad_fraction=0.6)
    rows = data.index.rows
    of_shard = np.flatnonzero(rows["shard"] == 3)
    cut = int(rows["audio_offset"][of_shard[4]]) + 10
    os.truncate(data.index.shard_paths[3], cut)  # the size was checked when the data were opened
    heard = {row for batch in epoch_of(data) for row in batch.ids_B.tolist()}
    behind = set(of_shard[4:].tolist())
    assert rows_named(log) == behind
    assert heard == set(range(60)) - behind


def test_a_slow_disk_changes_when_batches_come_and_not_what_they_hold(
    ramps: Path, monkeypatch: pytest.MonkeyPatch, equal: Callable[[Batch, Batch], bool]
) -> None:
    whole = epoch_of(data_of(ramps, 0))
    read, waits = os.pread, []

    def slow(descriptor: int, size: int, offset: int) -> bytes:
        waits.append(size)
        time.sleep(0.002)
        return read(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", slow)
    assert all(equal(a, b) for a, b in zip(epoch_of(data_of(ramps, 0)), whole, strict=True))
    assert len(waits) >= 60
    assert all(equal(a, b) for a, b in zip(epoch_of(data_of(ramps, 2)), whole, strict=True))


def test_a_disk_that_fails_to_read_is_named_and_stops_the_run_above_the_threshold(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> bytes:
        raise OSError(5, "Input/output error")

    data = data_of(copy, 0, quarantine=tmp_path / "bad.jsonl", max_bad_fraction=0.1)
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(DataError, match="inputs are bad"):
        epoch_of(data)
    assert "Input/output error" in (tmp_path / "bad.jsonl").read_text()


def finished(data: object, number: int) -> Iterator[int]:
    """Ids that a stream trains on until its first ``number`` shards are finished."""
    batches = iter(data.train_dataloader())  # ty: ignore[unresolved-attribute]
    while data.state_dict()["streams"]["floor"] < number:  # ty: ignore[unresolved-attribute]
        yield from next(batches).ids_B.tolist()
        data.advance()  # ty: ignore[unresolved-attribute]


def test_a_stream_reads_a_truncated_tar_up_to_its_cut_and_names_it(ramps: Path, tmp_path: Path) -> None:
    urls = [str(shutil.copy(url, tmp_path)) for url in shards_of(ramps)]
    names = members_of(urls[2])
    with tarfile.open(urls[2]) as tar:
        cut = tar.getmember(names[5]).offset_data + 100
    os.truncate(urls[2], cut)
    log = tmp_path / "bad.jsonl"
    seen = set(finished(stream_of(urls, quarantine=log, max_bad_fraction=0.5), len(urls)))
    whole = {id_of(url, name) for url in urls if url != urls[2] for name in members_of(url)}
    assert seen == whole | {id_of(urls[2], name) for name in names[:5]}
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert {entry["name"] for entry in entries} == {urls[2]}
    assert all("unexpected end of data" in entry["reason"] for entry in entries)


def test_a_tar_whose_names_climb_trains_without_a_file_being_written(ramps: Path, tmp_path: Path) -> None:
    index = DatasetIndex.load(ramps, "train")
    long = np.flatnonzero(index.rows["samples"] >= 16_000)[:8].tolist()
    url = tmp_path / "in" / "deep" / "climbing.tar"
    url.parent.mkdir(parents=True)
    with tarfile.open(url, "w") as tar:
        for number, row in enumerate(long):
            path = tmp_path / f"{row}.flac"
            path.write_bytes(index.read_audio(row))
            tar.add(path, f"../../{number}.flac" if number % 2 else f"/tmp/ossicle-climbs/{number}.flac")  # noqa: S108
            path.unlink()
    before = sorted(tmp_path.rglob("*"))
    seen = set(finished(stream_of(str(url), min_crop_s=1.0, shuffle=1), 1))
    assert len(seen) == len(long)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/ossicle-climbs").exists()  # noqa: S108
