"""Shards without an index: over kills, ranks and workers each utterance of each shard is trained on once an epoch."""

import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.data.ledger import StreamState, begun_of, merge, start
from ossicle.data.shards import digest_bytes
from ossicle.data.sources import EndlessShards
from ossicle.data.stream import StreamData
from tests.data.s3_server import serving

CLOCK = FrameClock().then(400, 320)


def shards_of(dataset: Path) -> list[str]:
    return [str(path) for path in sorted((dataset / "train").glob("*.tar"))]


def stream_of(urls: list[str] | str, **changes: object) -> StreamData:
    arguments: dict[str, object] = {
        "max_crop_s": 1.0, "min_crop_s": 0.3, "num_shapes": 2, "batch_s": 1.0, "shuffle": 6, "workers": 0, "seed": 5,
        "max_bad_fraction": 0.2, "measured": 30, **changes,
    }  # fmt: skip
    data = StreamData(urls, **arguments)  # ty: ignore[invalid-argument-type]
    data.set_clock(CLOCK)
    return data


def members_of(url: str) -> list[str]:
    with tarfile.open(url) as tar:
        return [name for name in tar.getnames() if name.endswith("flac")]


def id_of(url: str, member: str) -> int:
    return digest_bytes(f"{url}\0{member}".encode()) >> 1


@dataclass(frozen=True)
class Session:
    """A stretch of a run up to its kill: ranks, batches that each reads ahead, steps, and steps since the last save."""

    ranks: int
    ahead: int
    steps: int
    lost: int
    workers: int = 0


def as_rank(rank: int, ranks: int) -> "mock._patch_dict":
    return mock.patch.dict(os.environ, {"RANK": str(rank), "WORLD_SIZE": str(ranks)})


def trained(urls: list[str], sessions: list[Session], **changes: object) -> tuple[Counter[int], StreamState]:
    """How often each utterance was trained on by a run that is killed at the end of every session, and its state."""
    counts: Counter[int] = Counter()
    saved = stream_of(urls, **changes).state_dict()
    for session in sessions:
        ranks = [stream_of(urls, **{**changes, "workers": session.workers}) for _ in range(session.ranks)]
        loaders: list[Iterator[Batch]] = []
        for rank, data in enumerate(ranks):
            data.load_state_dict(saved)  # ty: ignore[invalid-argument-type]
            with as_rank(rank, session.ranks):
                loaders.append(iter(data.train_dataloader()))
        positions = []
        for step in range(session.steps):
            seen: list[int] = []
            for rank, (data, loader) in enumerate(zip(ranks, loaders, strict=True)):
                with as_rank(rank, session.ranks):
                    batch = next(loader)
                    data.advance()
                seen += batch.ids_B.tolist()
                positions.append(batch.position)
            if step < session.steps - session.lost:
                counts.update(seen)
                states = [data.state_dict() for data in ranks]
                saved = states[0] | {"streams": merge([state["streams"] for state in states])}  # ty: ignore[invalid-argument-type]
        assert len(set(positions)) == len(positions)
        for rank, loader in enumerate(loaders):  # what was read ahead is lost with the killed processes
            with as_rank(rank, session.ranks):
                list(islice(loader, session.ahead))
    assert saved["position"] == sum(s.ranks * max(0, s.steps - s.lost) for s in sessions)
    return counts, saved["streams"]  # ty: ignore[invalid-return-type]


def told(urls: list[str], state: StreamState, seed: int = 5) -> Counter[int]:
    """How often each utterance was trained on by what a state says: finished shards whole, others by ordinals."""
    begun = begun_of(state)
    finished = {*range(state["floor"]), *state["beyond"]} - set(begun)
    counts: Counter[int] = Counter()
    last = max([*finished, *begun], default=-1)
    for place in islice(EndlessShards(tuple(urls), seed, 0), last + 1):
        names = members_of(place.url)
        if place.number in finished:
            counts.update(id_of(place.url, name) for name in names)
        elif place.number in begun:
            read, held = begun[place.number]
            counts.update(id_of(place.url, name) for i, name in enumerate(names) if i < read and i not in held)
    return counts


sessions_of = st.lists(
    st.builds(Session, st.integers(1, 3), st.integers(0, 3), st.integers(1, 9), st.integers(0, 3)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=12, deadline=None)
@given(sessions=sessions_of)
def test_over_kills_and_ranks_each_utterance_of_a_shard_is_trained_on_once_an_epoch(
    ramps: Path, sessions: list[Session]
) -> None:
    urls = shards_of(ramps)
    # to the end of an epoch on one rank, whatever came before
    counts, state = trained(urls, [*sessions, Session(1, 0, 40, 0)])
    assert state["floor"] > 0
    assert counts == told(urls, state)


@pytest.mark.filterwarnings("ignore::UserWarning")  # more workers than this machine has cores
def test_real_workers_resume_to_the_shard_on_other_numbers_of_ranks_and_workers(ramps: Path) -> None:
    urls = shards_of(ramps)
    counts, state = trained(
        urls, [Session(2, 1, 5, 2, workers=2), Session(1, 0, 6, 1, workers=3), Session(1, 0, 50, 0)]
    )
    assert state["floor"] >= len(urls)
    assert min(counts.values()) >= 1
    assert set(counts) == {id_of(url, name) for url in urls for name in members_of(url)}
    assert counts == told(urls, state)


def test_crops_are_the_utterances_samples_and_come_in_static_shapes(ramps: Path) -> None:
    urls = shards_of(ramps)
    index = DatasetIndex.load(ramps, "train")
    waves = {id_of(url, name): None for url in urls for name in members_of(url)}
    for url in urls:
        with tarfile.open(url) as tar:
            for name in members_of(url):
                file = tar.extractfile(name)
                assert file is not None
                waves[id_of(url, name)] = decode(file.read())
    assert len(waves) == index.num_utterances
    data = stream_of(urls)
    for batch in islice(iter(data.train_dataloader()), 30):
        assert data.shapes is not None
        bucket = data.shapes.lengths.index(batch.waveform_BS.shape[1])
        assert batch.waveform_BS.shape[0] == data.shapes.rows[bucket]
        for wave_S, key, begin in zip(batch.waveform_BS, batch.ids_B.tolist(), batch.starts_B.tolist(), strict=True):
            assert begin % 320 == 0
            np.testing.assert_array_equal(wave_S.numpy(), waves[key][begin : begin + len(wave_S)])


def test_epochs_and_seeds_differ_in_order_and_the_same_start_gives_the_same_batches(ramps: Path) -> None:
    urls = shards_of(ramps)

    def first(**changes: object) -> list[list[int]]:
        return [batch.ids_B.tolist() for batch in islice(iter(stream_of(urls, **changes).train_dataloader()), 8)]

    assert first() == first()
    assert first() != first(seed=6)
    orders = [place.url for place in islice(EndlessShards(tuple(urls), 5, 0), 2 * len(urls))]
    assert sorted(orders[: len(urls)]) == sorted(orders[len(urls) :]) == urls
    assert orders[: len(urls)] != orders[len(urls) :]


def test_a_state_is_plain_and_of_the_same_shards_and_crops(ramps: Path, tmp_path: Path) -> None:
    urls = shards_of(ramps)
    data = stream_of(urls)
    loader = iter(data.train_dataloader())
    for _ in range(5):
        next(loader)
        data.advance()
    torch.save(data.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = stream_of(urls, measured=1)  # shapes are those of the run, whatever is measured now
    resumed.load_state_dict(state)
    assert resumed.shapes == data.shapes
    assert resumed.position == 5
    assert 0 <= resumed.epoch() <= data.epoch() + 1
    for other in (stream_of(urls[1:]), stream_of(urls, seed=6), stream_of(urls, batch_s=2.0)):
        with pytest.raises(ConfigError, match="other urls, crops, batch_s or seed"):
            other.load_state_dict(state)


def test_commands_and_braces_name_shards_too(ramps: Path) -> None:
    number = len(shards_of(ramps))
    folder = ramps / "train"
    braces = f"{folder}/shard-{{000000..{number - 1:06d}}}.tar"
    pipes = [f"pipe:cat {url}" for url in shards_of(ramps)]
    waves = []
    for urls in (braces, pipes, [f"file://{braces}"]):
        data = stream_of(urls, shuffle=1, num_shapes=1)
        assert len(data.sources.urls) == number
        batches = islice(iter(data.train_dataloader()), 6)
        waves.append(sorted(batch.waveform_BS.sum().item() for batch in batches))
    assert all(len(found) == 6 for found in waves)
    with pytest.raises(ConfigError, match="names no shard"):
        stream_of([])
    with pytest.raises(ConfigError, match="braces do not match"):
        stream_of("shard-{0..1.tar")


def test_a_shard_that_vanished_and_a_command_that_fails_are_named_and_the_rest_is_read(
    ramps: Path, tmp_path: Path
) -> None:
    urls = shards_of(ramps)
    log = tmp_path / "bad.jsonl"
    gone = [str(tmp_path / "gone.tar"), f"pipe:cat {tmp_path / 'gone.tar'} 2>/dev/null"]
    data = stream_of(urls + gone, quarantine=log, max_bad_fraction=0.5)
    seen: set[int] = set()
    loader = iter(data.train_dataloader())
    while data.state_dict()["streams"]["floor"] < len(urls + gone):  # ty: ignore[not-subscriptable]
        seen.update(next(loader).ids_B.tolist())
        data.advance()
    assert seen == {id_of(url, name) for url in urls for name in members_of(url)}
    named = {json.loads(line)["name"] for line in log.read_text().splitlines()}
    assert named >= set(gone)
    assert not named & set(urls)


def test_what_does_not_fit_is_refused(ramps: Path, tmp_path: Path) -> None:
    urls = shards_of(ramps)
    with pytest.raises(ConfigError, match="set_clock"):
        StreamData(
            urls,
            max_crop_s=1,
            min_crop_s=0.3,
            num_shapes=1,
            batch_s=1,
            shuffle=1,
            workers=0,
            seed=0,
            max_bad_fraction=0,
        ).train_dataloader()
    with pytest.raises(ConfigError, match=r"data\.shuffle=0"):
        stream_of(urls, shuffle=0)
    other_rate = stream_of(urls)
    other_rate.set_clock(FrameClock(400, 160, rate_hz=8_000))
    with pytest.raises(DataError, match="no utterance of 8000 Hz"):
        other_rate.train_dataloader()
    blind = stream_of(urls)
    blind.set_clock(FrameClock().then(100_000, 320))
    with pytest.raises(ConfigError, match="no frame"):
        blind.train_dataloader()
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(DataError, match="no utterance"):
        stream_of(str(tmp_path / "empty.tar")).train_dataloader()


def test_a_rank_that_webdataset_takes_for_another_is_refused(ramps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    loader = iter(stream_of(shards_of(ramps)).train_dataloader())
    with pytest.raises(ConfigError, match="takes this process for rank 0 of 1, and it is rank 1 of 2"):
        next(loader)


@pytest.mark.parametrize("kept", [False, True], ids=["from afar", "through the cache"])
def test_shards_behind_a_server_that_drops_connections_are_streamed(
    ramps: Path, tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ossicle.data.cache import ShardCache  # noqa: PLC0415

    monkeypatch.setattr("ossicle.data.retry.time.sleep", lambda _: None)
    names = [f"train/{Path(url).name}" for url in shards_of(ramps)]
    with serving(ramps) as server:
        server.faults.drop_first |= dict.fromkeys(names, 1)
        server.faults.status_first |= dict.fromkeys(names, (2, 503))
        urls = [f"s3://corpus/{name}" for name in names]
        cache = ShardCache(tmp_path / "cache", 1.0) if kept else None
        data = stream_of(urls, storage=server.storage, cache=cache, max_bad_fraction=0.0)
        loader = iter(data.train_dataloader())
        seen: Counter[int] = Counter()
        while data.state_dict()["streams"]["floor"] < len(urls):  # ty: ignore[not-subscriptable]
            seen.update(next(loader).ids_B.tolist())
            data.advance()
        assert {id_of(url, name) for url in urls for name in members_of(str(ramps / url.split("corpus/")[1]))} == set(
            seen
        )


def notes_of(folder: Path, name: str) -> list[list[int]]:
    lines = [line for file in sorted(folder.glob(f"{name}-*.jsonl")) for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def test_ranks_of_torch_killed_in_mid_epoch_resume_to_the_shard(ramps: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.data.ranks", str(ramps), str(tmp_path), "stream"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=280, check=False)
    assert (tmp_path / "one-0.pt").is_file(), ran.stderr
    saved = 12  # three steps of four batches: the last checkpoint before the kill
    before = [note for note in notes_of(tmp_path, "killed") if note[0] < saved]
    assert len(before) == saved
    assert max(note[0] for note in notes_of(tmp_path, "killed")) >= saved
    for name in ("one", "two"):
        result = torch.load(tmp_path / f"{name}-0.pt", weights_only=True)
        assert result["position"] == 36
        after = notes_of(tmp_path, name)
        assert len({note[0] for note in before + after}) == 36
        counts = Counter(key for note in before + after for key in note[1])  # ty: ignore[not-iterable]
        assert counts == told(shards_of(ramps), result["streams"])


def test_ledgers_of_no_shard_say_where_a_run_begins() -> None:
    assert merge([start(), start(), start()]) == start()


def test_the_command_line_trains_on_streams_and_refuses_targets_that_need_an_index(ramps: Path) -> None:
    from ossicle.launch.config import compose  # noqa: PLC0415
    from ossicle.launch.experiment import check, resolved  # noqa: PLC0415

    urls = f"data.urls=[{','.join(shards_of(ramps))}]"
    with pytest.raises(ConfigError, match="data=stream has none"):
        check(resolved(compose("pretrain", ["experiment=hubert_tiny", "data=stream", urls])))
    config = resolved(compose("pretrain", ["experiment=best_rq_tiny", "data=stream", urls]))
    check(config)
