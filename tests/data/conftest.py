import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.data.buckets import Shapes
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelCard, LabelSet, LabelWriter
from ossicle.data.plan import Plan
from ossicle.data.prepare import prepare
from ossicle.data.quarantine import Quarantine
from ossicle.data.reader import BatchReader
from ossicle.data.utterance import Corpus, Sample, Source, Utterance

BLOCK = 320
NUM_RAMPS = 60
CLOCK = FrameClock().then(400, 320)
SHAPES = Shapes(lengths=(4_800, 16_000), rows=(6, 3))


class Ramps(Corpus):
    """Each block of 320 samples of an utterance holds the block's number, so that a crop tells where it starts."""

    name = "ramps"

    @override
    def sources(self) -> Iterator[Source]:
        for number in range(NUM_RAMPS):
            yield Source(f"ramp/{number}", "train", length_of(number) / 16_000)

    @override
    def load(self, source: Source) -> Sample:
        number = int(source.name.removeprefix("ramp/"))
        pcm_S = (np.arange(length_of(number)) // BLOCK).astype(np.int16)
        return Sample(Utterance(source.name, "train", "xx", f"speaker-{number % 3}"), pcm_S)


def length_of(number: int) -> int:
    """0.3 to 2.1 seconds, no multiple of the block."""
    return 4_800 + (number * 7_919) % 28_801


@pytest.fixture(scope="session")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 utterances in shards of about 8."""
    output = tmp_path_factory.mktemp("ramps") / "data"
    prepare(Ramps(), output, shard_s=10, workers=1, max_bad_fraction=0.0)
    return output


@pytest.fixture
def corrupted(ramps: Path, tmp_path: Path) -> Callable[[list[int]], DatasetIndex]:
    """A copy of the dataset in which the audio of the given rows is overwritten with noise."""

    def damage(rows: list[int]) -> DatasetIndex:
        copy = tmp_path / "damaged"
        shutil.copytree(ramps, copy)
        index = DatasetIndex.load(copy, "train")
        for row in rows:
            entry = index.rows[row]
            with index.shard_paths[int(entry["shard"])].open("r+b") as file:
                file.seek(int(entry["audio_offset"]))
                file.write(np.random.default_rng(row).bytes(int(entry["audio_bytes"])))
        return index

    return damage


def labels_written(
    path: Path, index: DatasetIndex, clock: FrameClock = CLOCK, num_classes: int = 200, empty: tuple[int, ...] = ()
) -> Path:
    """Label t of row r is (t + r) mod the classes, so that a crop tells whose labels it has, and from where."""
    writer = LabelWriter(path, index)
    total = 0
    for shard in range(writer.num_shards):
        lengths = [
            0 if row in empty else clock.num_frames(int(index.rows[row]["samples"]))
            for row in writer.rows_of(shard).tolist()
        ]
        total += sum(lengths)
        rows = writer.rows_of(shard).tolist()
        writer.write_shard(
            shard, [(np.arange(n) + row) % num_classes for row, n in zip(rows, lengths, strict=True)], float(shard)
        )
        assert writer.has_shard(shard)
        assert writer.read_total(shard) == shard
    card = LabelCard(
        clock=clock,
        num_classes=num_classes,
        source={"features": "ramp"},
        split=index.split,
        content_hash=index.content_hash,
        num_utterances=index.num_utterances,
        num_frames=total,
        inertia=1.0,
        entropy_nats=1.0,
        perplexity=1.0,
        dead_classes=0,
        seconds=0.0,
        details={},
    )
    writer.finish(card)
    return path


@pytest.fixture
def write_labels() -> Callable[..., Path]:
    return labels_written


def make_reader(
    index: DatasetIndex, log: Path | None = None, most: float = 0.5, labels: Path | None = None
) -> BatchReader:
    return BatchReader(
        index,
        SHAPES,
        seed=1,
        model_clock=CLOCK,
        quarantine=Quarantine(log, most),
        labels=None if labels is None else LabelSet.load(labels),
    )


def make_plan(index: DatasetIndex) -> Plan:
    return Plan(index.rows, SHAPES, seed=1, window_shards=2)


def are_equal(a: Batch, b: Batch) -> bool:
    labels = (a.labels_BT is None) == (b.labels_BT is None)
    labels = labels and (a.labels_BT is None or torch.equal(a.labels_BT, b.labels_BT))
    return (
        labels
        and a.position == b.position
        and torch.equal(a.waveform_BS, b.waveform_BS)
        and torch.equal(a.ids_B, b.ids_B)
        and torch.equal(a.starts_B, b.starts_B)
    )


@pytest.fixture
def ramp_labels(ramps: Path, tmp_path: Path) -> Path:
    return labels_written(tmp_path / "ramp-labels", DatasetIndex.load(ramps, "train"))


@pytest.fixture
def reader_of() -> Callable[..., BatchReader]:
    """Makes a reader of crops of 0.3 s (six a batch) and 1 s (three a batch)."""
    return make_reader


@pytest.fixture
def plan_of() -> Callable[[DatasetIndex], Plan]:
    return make_plan


@pytest.fixture
def equal() -> Callable[[Batch, Batch], bool]:
    return are_equal
