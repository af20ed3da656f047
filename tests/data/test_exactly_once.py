"""Ranks x workers x shards x kill points x resumption on another world: what is seen is what an unbroken run sees."""

import json
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.world import World
from ossicle.data.index import DatasetIndex
from ossicle.data.loader import PlannedSampler
from ossicle.data.module import ShardData
from ossicle.data.plan import BatchSpec
from tests.data.mixtures import Mixture, mixtures

CLOCK = FrameClock().then(400, 320)
Seen = tuple[int, int, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Session:
    """A stretch of a run up to its kill: ranks, batches that each reads ahead, steps, and steps since the last save."""

    ranks: int
    ahead: int
    steps: int
    lost: int


sessions = st.lists(
    st.builds(Session, st.integers(1, 5), st.integers(0, 8), st.integers(1, 9), st.integers(0, 4)),
    min_size=1,
    max_size=5,
)


def noted(spec: BatchSpec) -> Seen:
    pieces = [0] * len(spec.ids) if spec.pieces is None else spec.pieces.tolist()
    return spec.position, spec.bucket, tuple(zip(spec.ids.tolist(), pieces, strict=True))


def killed_and_resumed(mixture: Mixture, run: list[Session]) -> list[Seen]:
    """What a run keeps that is killed at the end of every session but the last: nothing but the position is carried."""
    kept: list[Seen] = []
    position = 0
    for session in run:
        loaders = [
            iter(PlannedSampler(mixture.sequence(), position, World(r, session.ranks))) for r in range(session.ranks)
        ]
        # no rank ends before another
        steps = [[noted(next(loader)) for loader in loaders] for _ in range(session.steps)]
        for loader in loaders:
            list(islice(loader, session.ahead))  # workers read on, and die with it
        saved = steps[: max(0, session.steps - session.lost)]
        kept.extend(batch for step in saved for batch in step)
        position += session.ranks * len(saved)
    return kept


@settings(max_examples=60, deadline=None)
@given(mixtures(), sessions)
def test_a_run_killed_anywhere_and_resumed_on_any_world_keeps_the_unbroken_runs_batches(
    mixture: Mixture, run: list[Session]
) -> None:
    kept = killed_and_resumed(mixture, run)
    whole = mixture.sequence()
    assert kept == [noted(whole.batch(position)) for position in range(len(kept))]


@settings(max_examples=40, deadline=None)
@given(mixtures(), sessions, st.integers(1, 3))
def test_over_kills_and_worlds_each_item_comes_once_a_pass_of_its_bucket(
    mixture: Mixture, run: list[Session], epochs: int
) -> None:
    whole = mixture.sequence()
    kept = killed_and_resumed(mixture, run)
    kept += [noted(whole.batch(position)) for position in range(len(kept), whole.first_position(epochs))]
    counts: dict[int, Counter[tuple[int, int]]] = {}
    for _, bucket, items in kept:
        counts.setdefault(bucket, Counter()).update(items)
    for component in whole.components:
        for bucket, items in enumerate(component.items):
            rows, pieces = whole.items.rows_and_pieces(items)
            each = [counts.get(bucket, Counter())[item] for item in zip(rows.tolist(), pieces.tolist(), strict=True)]
            # each the same number of times, or once more for those that the running pass has reached
            assert not each or max(each) - min(each) <= 1


@settings(max_examples=40, deadline=None)
@given(mixtures())
def test_every_sample_that_is_long_enough_lies_in_one_piece(mixture: Mixture) -> None:
    plan = mixture.sequence()
    samples = mixture.samples()
    items = np.concatenate([items for component in plan.components for items in component.items])
    rows, pieces = plan.items.rows_and_pieces(items)
    first, end = mixture.shapes.spans(samples[rows], pieces)
    by_place = np.lexsort((first, rows))
    rows, first, end = rows[by_place], first[by_place], end[by_place]
    assert sorted(set(rows.tolist())) == np.flatnonzero(samples >= mixture.shapes.lengths[0]).tolist()
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    assert (first[starts] == 0).all()
    assert (end[[*(starts[1:] - 1), len(rows) - 1]] == samples[rows[starts]]).all()
    inner = np.setdiff1d(np.arange(len(rows)), starts)
    assert (first[inner] == end[inner - 1]).all()
    assert (end - first >= mixture.shapes.lengths[0]).all()


def data_of(path: Path, workers: int, **changes: object) -> ShardData:
    arguments: dict[str, object] = {
        "max_crop_s": 0.8, "min_crop_s": 0.3, "num_shapes": 4, "batch_s": 2.0, "window_shards": 2, "workers": workers,
        "seed": 5, "max_bad_fraction": 0.2, "max_cut": 0.1, **changes,
    }  # fmt: skip
    data = ShardData(path, **arguments)  # ty: ignore[invalid-argument-type]
    data.set_clock(CLOCK)
    return data


def crops(batch: Batch) -> tuple[int, tuple[tuple[int, int], ...]]:
    return batch.position, tuple(zip(batch.ids_B.tolist(), batch.starts_B.tolist(), strict=True))


def loader_at(
    path: Path, workers: int, position: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Batch]:
    data = data_of(path, workers)
    data.position = position
    monkeypatch.setattr(World, "current", lambda: world)
    return iter(data.train_dataloader())


@pytest.mark.parametrize("worlds", [[(2, 1, 7), (3, 2, 3), (1, 0, 12)], [(1, 3, 11), (4, 1, 6)]])
def test_real_workers_read_what_is_planned_over_kills_and_worlds(
    ramps: Path, worlds: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    position = 0
    for ranks, workers, steps in worlds:
        loaders = [loader_at(ramps, workers, position, World(rank, ranks), monkeypatch) for rank in range(ranks)]
        seen += [crops(next(loader)) for _ in range(steps) for loader in loaders]
        position += ranks * steps
    whole = loader_at(ramps, 0, 0, World(), monkeypatch)
    assert seen == [crops(batch) for batch in islice(whole, position)]


def test_crops_of_an_epoch_do_not_overlap(ramps: Path) -> None:
    data = data_of(ramps, 0)
    samples = data.index.rows["samples"]
    spans: dict[int, dict[int, tuple[int, int]]] = {}
    for batch in islice(iter(data.train_dataloader()), data.plan.first_position(1)):
        spec = data.plan.batch(batch.position)
        assert spec.pieces is not None
        for row, piece, start in zip(batch.ids_B.tolist(), spec.pieces.tolist(), batch.starts_B.tolist(), strict=True):
            # a batch at the end of an epoch reaches into the next: the first time counts
            spans.setdefault(row, {}).setdefault(piece, (start, start + batch.waveform_BS.shape[1]))
    assert any(len(found) > 2 for found in spans.values())
    for row, found in spans.items():
        in_order = [found[piece] for piece in range(len(found))]
        assert all(after[0] > before[1] - 320 for before, after in pairwise(in_order))
        assert in_order[-1][1] <= int(samples[row])


def test_workers_hold_no_plan(ramps: Path) -> None:
    loader = data_of(ramps, 2).train_dataloader()
    # what a worker is given; the sampler, which holds the plan, stays in the main process
    assert len(pickle.dumps(loader.dataset)) < 5_000
    assert b"ossicle.data.component" not in pickle.dumps(loader.dataset)


def test_a_killed_worker_says_what_to_do_and_loses_nothing(ramps: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.data.lost_worker", str(ramps)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    problem, mend = found["said"]
    assert "a reading process was lost" in problem
    assert "start the same command again" in mend
    assert found["seen"] == found["whole"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_in_mid_epoch_is_left_out_below_the_threshold(
    corrupted: Callable[[list[int]], DatasetIndex], tmp_path: Path, workers: int
) -> None:
    index = corrupted([])
    log = tmp_path / "bad.jsonl"
    # one shard after another, so that one is not yet open when it goes
    data = data_of(index.path, workers, quarantine=log, window_shards=1, max_bad_fraction=0.6)
    batches = iter(data.train_dataloader())
    first = next(batches)
    shards = index.rows["shard"]
    open_now = {int(shards[row]) for position in range(12) for row in data.plan.batch(position).ids.tolist()}
    shard = min(set(shards.tolist()) - open_now)
    index.shard_paths[shard].unlink()
    seen = set(first.ids_B.tolist())
    for batch in islice(batches, data.plan.first_position(1)):
        assert batch.waveform_BS.isfinite().all()
        seen.update(batch.ids_B.tolist())
    gone = set(np.flatnonzero(shards == shard).tolist())
    assert seen == set(range(60)) - gone
    named = {int(json.loads(line)["name"].split(" row ")[1].split()[0]) for line in log.read_text().splitlines()}
    assert named == gone


def notes_of(folder: Path, name: str) -> dict[int, object]:
    """What a scenario's ranks have trained on, by position."""
    lines = [line for file in sorted(folder.glob(f"{name}-*.jsonl")) for line in file.read_text().splitlines()]
    notes = [json.loads(line) for line in lines]
    assert len({note[0] for note in notes}) == len(notes)  # no rank takes what another has
    return {note[0]: note[1:] for note in notes}


def test_ranks_of_torch_killed_in_mid_epoch_see_after_resumption_what_an_unbroken_run_sees(
    ramps: Path, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.data.ranks", str(ramps), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=280, check=False)
    assert (tmp_path / "two-0.pt").is_file(), ran.stderr
    whole = notes_of(tmp_path, "straight")
    assert sorted(whole) == list(range(36))
    data = data_of(ramps, 0, num_shapes=3)
    saved = 12  # three steps of four batches: the last checkpoint before the kill
    assert saved < 20 < data.plan.first_position(1) < 36  # killed in an epoch, and trained on into the next
    assert {position: note for position, note in whole.items() if position < 20} == {
        position: note for position, note in notes_of(tmp_path, "killed").items() if position < 20
    }
    assert max(notes_of(tmp_path, "killed")) < 24
    assert not (tmp_path / "killed-1.pt").exists()
    weights = torch.load(tmp_path / "straight-0.pt", weights_only=True)["weights"]
    for name in ("one", "two"):
        assert notes_of(tmp_path, name) == {position: note for position, note in whole.items() if position >= saved}
        result = torch.load(tmp_path / f"{name}-0.pt", weights_only=True)
        assert result["position"] == 36
        assert all(torch.allclose(result["weights"][key], weights[key], atol=1e-5) for key in weights)
