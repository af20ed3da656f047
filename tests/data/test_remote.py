"""Datasets behind URLs, against a local server that drops connections, refuses, corrupts and forgets."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError, MissingExtraError
from ossicle.data.cache import ShardCache
from ossicle.data.index import DatasetIndex
from ossicle.data.module import ShardData
from ossicle.data.store import RemoteFiles
from tests.data.s3_server import Server, serving

CLOCK = FrameClock().then(400, 320)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retries pause for no time; how long they would have is noted."""
    pauses: list[float] = []
    monkeypatch.setattr("ossicle.data.retry.time.sleep", pauses.append)
    return pauses


@pytest.fixture
def server(ramps: Path) -> Iterator[Server]:
    with serving(ramps) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 1.0)


def http(server: Server) -> str:
    return f"{server.endpoint}/corpus"


def equals_local(found: DatasetIndex, ramps: Path) -> bool:
    local = DatasetIndex.load(ramps, "train")
    assert found.content_hash == local.content_hash
    assert np.array_equal(found.rows, local.rows)
    rows = range(local.num_utterances)
    assert [found.read_meta(row) for row in rows] == [local.read_meta(row) for row in rows]
    return [found.read_audio(row) for row in rows] == [local.read_audio(row) for row in rows]


@pytest.mark.parametrize("scheme", ["s3", "http", "memory"])
def test_a_split_behind_a_url_is_the_split_on_the_disk(
    server: Server, ramps: Path, cache: ShardCache, scheme: str
) -> None:
    if scheme == "memory":  # any other of fsspec's
        fsspec.filesystem("memory").put(str(ramps), "/ramps", recursive=True)
    url = {"s3": "s3://corpus", "http": http(server), "memory": "memory://ramps"}[scheme]
    storage = server.storage if scheme == "s3" else None
    index = DatasetIndex.load(url, "train", cache, storage)
    assert equals_local(index, ramps)
    assert equals_local(pickle.loads(pickle.dumps(index)), ramps)  # noqa: S301
    if scheme != "memory":
        shards = [path.name for path in (ramps / "train").glob("*.tar")]
        assert [server.faults.count(name) for name in shards] == [1] * len(shards)  # once a machine


def test_dropped_connections_and_errors_that_pass_are_tried_again_with_growing_pauses(
    server: Server, ramps: Path, cache: ShardCache, no_pauses: list[float]
) -> None:
    server.faults.status_first = {"dataset.json": (1, 500), "shard-000001": (3, 503), "index.npy": (1, 429)}
    server.faults.drop_first = {"shard-000000": 2, "shard-000002": 1}
    assert equals_local(DatasetIndex.load("s3://corpus", "train", cache, server.storage), ramps)
    assert len(no_pauses) >= 8
    assert all(0.25 <= pause <= 2.0 for pause in no_pauses)
    assert max(no_pauses) > 1.0  # the third pause for one object


def test_what_stays_refused_is_told_at_once(server: Server, cache: ShardCache, no_pauses: list[float]) -> None:
    server.faults.forbidden = {"dataset.json"}
    with pytest.raises(DataError, match=r"reading .*dataset\.json failed"):
        DatasetIndex.load(http(server), "train", cache)
    server.faults.forbidden = set()
    with pytest.raises(DataError, match="has no split 'none'"):
        DatasetIndex.load(http(server), "none", cache)
    assert no_pauses == []


def test_a_server_that_never_recovers_ends_the_reading_after_six_tries(
    server: Server, cache: ShardCache, no_pauses: list[float]
) -> None:
    server.faults.status_first = {"dataset.json": (1_000, 503)}
    with pytest.raises(DataError, match="failed 6 times"):
        DatasetIndex.load(http(server), "train", cache)
    assert len(no_pauses) == 5


def test_a_shard_that_is_missing_or_short_is_found_at_the_start_where_the_store_lists(
    server: Server, cache: ShardCache
) -> None:
    server.faults.missing = {"shard-000002"}
    with pytest.raises(DataError, match=r"shard-000002\.tar is missing"):
        DatasetIndex.load("s3://corpus", "train", cache, server.storage)
    server.faults.missing = set()
    server.faults.truncated = {"shard-000001": 100}
    with pytest.raises(DataError, match=r"shard-000001\.tar has 100 bytes and should have"):
        DatasetIndex.load("s3://corpus", "train", cache, server.storage)


def data_of(path: str | Path, workers: int = 0, **changes: object) -> ShardData:
    arguments: dict[str, object] = {
        "max_crop_s": 0.8, "min_crop_s": 0.3, "num_shapes": 4, "batch_s": 2.0, "window_shards": 2, "workers": workers,
        "seed": 5, "max_bad_fraction": 0.0, "max_cut": 0.1, **changes,
    }  # fmt: skip
    data = ShardData(path, **arguments)  # ty: ignore[invalid-argument-type]
    data.set_clock(CLOCK)
    return data


def epoch_of(data: ShardData) -> list[Batch]:
    return list(islice(iter(data.train_dataloader()), data.plan.first_position(1)))


@pytest.mark.parametrize("max_gb", [1.0, 0.0], ids=["through the cache", "in ranges"])
def test_workers_read_the_same_batches_out_of_a_bucket(
    server: Server, ramps: Path, tmp_path: Path, max_gb: float, equal: Callable[[Batch, Batch], bool]
) -> None:
    server.faults.drop_first = {"shard-000003": 1}
    cache = ShardCache(tmp_path / "cache", max_gb)
    far = data_of("s3://corpus", 2, cache=cache, storage=server.storage)
    near = epoch_of(data_of(ramps))
    assert all(equal(a, b) for a, b in zip(epoch_of(far), near, strict=True))
    assert far.fingerprint == data_of(ramps).fingerprint  # a run may move to a copy and go on
    ranged = [way for method, path, way in server.faults.requests if ".tar" in path and method == "GET" and way]
    assert len(ranged) > 40 if max_gb == 0 else cache.num_bytes() > 0


def test_a_shard_that_vanishes_at_the_server_is_quarantined_and_the_rest_is_read(
    server: Server, ramps: Path, tmp_path: Path, cache: ShardCache
) -> None:
    log = tmp_path / "bad.jsonl"
    data = data_of(http(server), cache=cache, quarantine=log, max_bad_fraction=0.6)
    server.faults.missing = {"shard-000002"}
    seen = {row for batch in epoch_of(data) for row in batch.ids_B.tolist()}
    shards = DatasetIndex.load(ramps, "train").rows["shard"]
    assert seen == set(np.flatnonzero(shards != 2).tolist())
    named = {int(json.loads(line)["name"].split(" row ")[1].split()[0]) for line in log.read_text().splitlines()}
    assert named == set(np.flatnonzero(shards == 2).tolist())


def test_bytes_that_differ_once_are_fetched_again_and_twice_are_left_out(
    server: Server, ramps: Path, tmp_path: Path, cache: ShardCache
) -> None:
    server.faults.corrupt_first = {"shard-000001": 1}
    assert equals_local(DatasetIndex.load(http(server), "train", cache), ramps)
    # what differs for good is blank, named, and all beside it is as it was
    server.faults.corrupt_first = {"shard-000001": 1_000}
    log = tmp_path / "bad.jsonl"
    data = data_of(http(server), cache=ShardCache(tmp_path / "other", 1.0), quarantine=log, max_bad_fraction=0.5)
    batches = epoch_of(data)
    rows = DatasetIndex.load(ramps, "train").rows
    named = {int(json.loads(line)["name"].split(" row ")[1].split()[0]) for line in log.read_text().splitlines()}
    assert 0 < len(named) < (rows["shard"] == 1).sum() + 1
    assert named <= set(np.flatnonzero(rows["shard"] == 1).tolist())
    assert {row for batch in batches for row in batch.ids_B.tolist()} == set(range(60)) - named


def test_the_cache_never_holds_more_than_it_may(server: Server, ramps: Path, tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in (ramps / "train").glob("*.tar")]
    rows = (ramps / "train" / "index.npy").stat().st_size
    bound = (rows + 2.5 * max(sizes)) / 1e9
    cache = ShardCache(tmp_path / "cache", bound)
    index = DatasetIndex.load(http(server), "train", cache)
    local = DatasetIndex.load(ramps, "train")
    for row in np.random.default_rng(0).permutation(local.num_utterances).tolist():
        assert index.read_audio(row) == local.read_audio(row)
        assert cache.num_bytes() <= bound * 1e9


def test_a_server_without_ranges_serves_whole_files_and_that_is_said_once(
    server: Server, ramps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.without_ranges = True
    assert equals_local(DatasetIndex.load(http(server), "train", ShardCache(tmp_path / "none", 0)), ramps)
    assert sum("does not serve ranges" in record.message for record in caplog.records) == 1


def test_a_dataset_that_was_written_anew_shares_nothing_with_old_copies(ramps: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(ramps, copy)
    cache = ShardCache(tmp_path / "cache", 1.0)
    with serving(copy) as server:
        first = DatasetIndex.load(http(server), "train", cache)
        first.read_audio(0)
        card = json.loads((copy / "dataset.json").read_text())
        (copy / "dataset.json").write_text(json.dumps({**card, "num_bad": 7}))
        second = DatasetIndex.load(http(server), "train", cache)
        second.read_audio(0)
        assert server.faults.count("shard-000000") == 2


@pytest.mark.parametrize(
    ("url", "package"),
    [("s3://b/d", "s3fs"), ("gs://b/d", "gcsfs"), ("hf://datasets/a/b", "huggingface_hub"), ("https://h/d", "aiohttp")],
)
def test_a_missing_client_names_the_package_and_the_extra(
    url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> object:
        raise ImportError(f"Please install {package}")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(MissingExtraError, match=package) as caught:
        RemoteFiles(url).read_all("dataset.json")
    assert "ossicle[remote]" in caught.value.mend


@pytest.mark.parametrize(
    ("url", "package", "path"),
    [
        ("s3://bucket/data", "s3fs", "bucket/data"),
        ("gs://bucket/data", "gcsfs", "bucket/data"),
        ("hf://datasets/who/what", "huggingface_hub", "datasets/who/what"),
        ("https://host/data", "fsspec", "https://host/data"),
    ],
)
def test_each_scheme_finds_its_client(url: str, package: str, path: str) -> None:
    files = RemoteFiles(url, {"token": "anon"} if url.startswith("gs") else None)
    fs, root = files._client()
    assert type(fs).__module__.partition(".")[0] == package
    assert root == path


def test_what_is_no_url_or_no_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        RemoteFiles("nonsense://a/b").read_all("dataset.json")
    with pytest.raises(ConfigError, match=r"cannot be opened with the options \['wrong'\]"):
        RemoteFiles("s3://a/b", {"wrong": 1}).read_all("dataset.json")
