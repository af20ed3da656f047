import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.data.plan import BatchSpec, Plan
from ossicle.data.reader import BatchReader

CLOCK = FrameClock().then(400, 320)


def test_crops_are_the_utterances_samples_from_their_starts(
    ramps: Path, reader_of: Callable[..., BatchReader], plan_of: Callable[[DatasetIndex], Plan]
) -> None:
    index = DatasetIndex.load(ramps, "train")
    reader, plan = reader_of(index), plan_of(index)
    for position in range(40):
        spec = plan.batch(position)
        batch = reader.read(spec)
        assert batch.waveform_BS.shape == (reader.shapes.rows[spec.bucket], reader.shapes.lengths[spec.bucket])
        assert batch.ids_B.tolist() == spec.ids.tolist()
        assert batch.position == position
        for wave_S, row, start in zip(batch.waveform_BS, batch.ids_B.tolist(), batch.starts_B.tolist(), strict=True):
            whole = decode(index.read_audio(row))
            assert np.array_equal(wave_S.numpy(), whole[start : start + len(wave_S)])
            assert start % 320 == 0
            # the ramp counts blocks: the first sample alone tells the crop's place
            assert round(float(wave_S[0]) * 32_768) * 320 == start


def test_crop_starts_reach_every_place(ramps: Path, reader_of: Callable[..., BatchReader]) -> None:
    index = DatasetIndex.load(ramps, "train")
    reader = reader_of(index)
    row = int(np.flatnonzero(index.rows["samples"] < 4_800 + 5 * 320)[-1])
    places = (int(index.rows[row]["samples"]) - 4_800) // 320 + 1
    specs = [BatchSpec(position, 0, 0, np.full(6, row)) for position in range(30)]
    starts = {start for spec in specs for start in reader.read(spec).starts_B.tolist()}
    assert starts == {320 * place for place in range(places)}


def test_labels_come_from_the_crops_own_frames(
    ramps: Path, ramp_labels: Path, reader_of: Callable[..., BatchReader], plan_of: Callable[[DatasetIndex], Plan]
) -> None:
    index = DatasetIndex.load(ramps, "train")
    reader = reader_of(index, labels=ramp_labels)
    for position in range(20):
        batch = reader.read(plan_of(index).batch(position))
        assert batch.labels_BT is not None
        frames = CLOCK.num_frames(batch.waveform_BS.shape[1])
        # by what is heard: frame t begins at sample 320 t of the crop, whose value is the number of its block
        heard_BT = (batch.waveform_BS[:, : 320 * frames : 320] * 32_768).round().long()
        assert torch.equal(batch.labels_BT, (heard_BT + batch.ids_B[:, None]) % 200)


def test_a_batch_depends_on_its_spec_alone(
    ramps: Path,
    reader_of: Callable[..., BatchReader],
    plan_of: Callable[[DatasetIndex], Plan],
    equal: Callable[[Batch, Batch], bool],
) -> None:
    index = DatasetIndex.load(ramps, "train")
    plan, reader = plan_of(index), reader_of(index)
    forwards = [reader.read(plan.batch(g)) for g in range(8)]
    backwards = [reader_of(index).read(plan_of(index).batch(g)) for g in reversed(range(8))]
    assert all(equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


def test_a_corrupt_utterance_is_named_and_the_next_good_one_takes_its_place(
    corrupted: Callable[[list[int]], DatasetIndex],
    tmp_path: Path,
    reader_of: Callable[..., BatchReader],
    equal: Callable[[Batch, Batch], bool],
) -> None:
    index = corrupted([10, 11])
    reader = reader_of(index, tmp_path / "quarantine.jsonl")
    ids = np.array([9, 10, 11, 12, 13, 14])
    batch = reader.read(BatchSpec(0, 0, 0, ids))
    assert batch.ids_B.tolist() == [9, 12, 12, 12, 13, 14]
    assert equal(batch, reader_of(index).read(BatchSpec(0, 0, 0, ids)))
    for wave_S, row, start in zip(batch.waveform_BS, batch.ids_B.tolist(), batch.starts_B.tolist(), strict=True):
        assert np.array_equal(wave_S.numpy(), decode(index.read_audio(row), start, 4_800))
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [f"ramp/{row}" in line["name"] for row, line in zip((10, 11), lines, strict=True)] == [True, True]
    assert reader.quarantine.num_bad == 2
    assert all(line["reason"] for line in lines)


def test_a_batch_of_corrupt_utterances_is_filled_from_their_neighbours(
    corrupted: Callable[[list[int]], DatasetIndex], reader_of: Callable[..., BatchReader]
) -> None:
    index = corrupted([20])
    batch = reader_of(index).read(BatchSpec(0, 0, 0, np.full(6, 20)))
    (row,) = set(batch.ids_B.tolist())
    assert row == 21
    assert np.array_equal(batch.waveform_BS[0].numpy(), decode(index.read_audio(21), int(batch.starts_B[0]), 4_800))


def test_where_nothing_can_be_read_the_reader_says_so(
    corrupted: Callable[[list[int]], DatasetIndex],
    reader_of: Callable[..., BatchReader],
    plan_of: Callable[[DatasetIndex], Plan],
) -> None:
    index = corrupted(list(range(60)))
    with pytest.raises(DataError, match="no utterance of batch 0"):
        reader_of(index, most=1.0).read(plan_of(index).batch(0))


def test_too_many_corrupt_utterances_stop_the_reader(
    corrupted: Callable[[list[int]], DatasetIndex],
    reader_of: Callable[..., BatchReader],
    plan_of: Callable[[DatasetIndex], Plan],
) -> None:
    index = corrupted(list(range(0, 60, 3)))
    reader, plan = reader_of(index, most=0.1), plan_of(index)
    with pytest.raises(DataError, match="inputs are bad"):
        deque((reader.read(plan.batch(position)) for position in range(30)), maxlen=0)


def test_labels_of_another_clock_are_refused_before_anything_is_read(
    ramps: Path, tmp_path: Path, write_labels: Callable[..., Path], reader_of: Callable[..., BatchReader]
) -> None:
    index = DatasetIndex.load(ramps, "train")
    path = write_labels(tmp_path / "labels", index, clock=CLOCK.then(2, 2))
    with pytest.raises(ConfigError, match="every 640"):
        reader_of(index, labels=path)


def test_workers_import_neither_lightning_nor_hydra() -> None:
    code = (
        "import sys, ossicle.data.reader, ossicle.data.loader\n"
        "assert not {'lightning', 'hydra', 'omegaconf', 'torchaudio', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_crops_start_depends_on_seed_and_position_and_what_is_read_is_counted(
    ramps: Path, reader_of: Callable[..., BatchReader], plan_of: Callable[[DatasetIndex], Plan]
) -> None:
    index = DatasetIndex.load(ramps, "train")
    reader, other = reader_of(index), reader_of(index)
    other.seed = reader.seed + 1
    plan = plan_of(index)
    spec = next(spec for spec in map(plan.batch, range(20)) if spec.bucket == 0)
    starts = reader.read(spec).starts_B.tolist()
    assert len(set(starts)) > 1
    assert reader.read(spec).starts_B.tolist() == starts
    assert reader.read(replace(spec, position=spec.position + 1)).starts_B.tolist() != starts
    assert other.read(spec).starts_B.tolist() != starts
    assert (reader.quarantine.num_seen, reader.quarantine.num_bad) == (3 * len(starts), 0)
