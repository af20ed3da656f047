import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from ossicle.core.errors import ConfigError, DataError
from ossicle.data.cache import Fill, ShardCache


def filled(data: bytes) -> Fill:
    def fill(file: BinaryIO) -> None:
        file.write(data)

    return fill


def never(file: BinaryIO) -> None:  # noqa: ARG001
    raise AssertionError("fetched though it is there")


def read(cache: ShardCache, key: str, size: int, fill: Fill) -> bytes:
    descriptor = cache.open(key, size, fill)
    assert descriptor is not None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def test_a_file_is_fetched_once_and_the_longest_unused_gives_way(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 25e-9)
    for key in ("a", "b"):
        assert read(cache, key, 10, filled(key.encode() * 10)) == key.encode() * 10
    os.utime(tmp_path / "a", (1, 1))
    os.utime(tmp_path / "b", (2, 2))
    assert read(cache, "a", 10, never) == b"a" * 10  # and is now the one used last
    assert read(cache, "c", 10, filled(b"c" * 10)) == b"c" * 10
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"a", "c"}
    assert cache.num_bytes() == 20


def test_a_file_that_gives_way_is_read_on_by_whoever_has_it_open(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 15e-9)
    descriptor = cache.open("a", 10, filled(b"a" * 10))
    assert descriptor is not None
    read(cache, "b", 10, filled(b"b" * 10))
    assert not (tmp_path / "a").exists()
    assert os.pread(descriptor, 10, 0) == b"a" * 10
    os.close(descriptor)


def test_what_is_larger_than_the_cache_is_not_kept_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ShardCache(tmp_path, 5e-9)
    assert cache.open("a", 10, never) is None
    assert cache.open("a", 10, never) is None
    assert [record.message for record in caplog.records] == [
        "the cache of 5 bytes cannot hold a of 10: it is read from afar"
    ]
    assert ShardCache(tmp_path, 0).open("a", 10, never) is None


def test_a_fetch_that_fails_or_comes_short_leaves_nothing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1.0)

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise DataError("the server is gone", "wait")

    with pytest.raises(DataError, match="server is gone"):
        cache.open("a", 10, fail)
    with pytest.raises(DataError, match="came with 12 bytes instead of 10"):
        cache.open("a", 10, filled(b"a" * 12))
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != ".locks"] == []
    assert cache.num_bytes() == 0


def slow_fetch(folder: Path, log: Path) -> None:
    def fill(file: BinaryIO) -> None:
        with log.open("a") as out:
            out.write("fetched\n")
        time.sleep(0.3)
        file.write(b"a" * 10)

    assert read(ShardCache(folder, 1.0), "a", 10, fill) == b"a" * 10


def test_processes_that_want_one_file_fetch_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=slow_fetch, args=(tmp_path / "cache", log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "fetched\n"


def endless_fetch(folder: Path, flag: Path) -> None:
    def fill(file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        flag.touch()
        time.sleep(60)

    ShardCache(folder, 25e-9).open("a", 10, fill)


def test_what_a_killed_fetch_left_goes_with_the_next_and_counts_until_then(tmp_path: Path) -> None:
    folder, flag = tmp_path / "cache", tmp_path / "flag"
    process = multiprocessing.get_context("fork").Process(target=endless_fetch, args=(folder, flag))
    process.start()
    while not flag.exists():
        time.sleep(0.01)
    cache = ShardCache(folder, 25e-9)
    assert cache.num_bytes() == 10  # a fetch under way counts at its full size
    read(cache, "b", 10, filled(b"b" * 10))
    assert cache.open("c", 20, never) is None  # and gives no way to others
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert read(cache, "c", 20, filled(b"c" * 20)) == b"c" * 20
    assert list(folder.glob(".*.part")) == []
    assert cache.num_bytes() <= 25


def test_a_scratch_file_has_no_name(tmp_path: Path) -> None:
    with ShardCache(tmp_path, 0).scratch(filled(b"abc")) as file:
        file.seek(0)
        assert file.read() == b"abc"
        assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.cache\.max_gb=-1"):
        ShardCache(tmp_path, -1)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written") as caught:
        ShardCache(tmp_path / "file", 1.0).open("a", 1, never)
    assert "data.cache.dir" in caught.value.mend
    assert str(os.getuid()) in ShardCache().folder.name
