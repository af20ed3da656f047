import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet, LabelWriter

CLOCK = FrameClock().then(400, 320)


@pytest.fixture
def index(ramps: Path) -> DatasetIndex:
    return DatasetIndex.load(ramps, "train")


def test_every_frame_of_every_crop_has_the_label_of_the_same_moment(
    index: DatasetIndex, tmp_path: Path, write_labels: Callable[..., Path]
) -> None:
    labels = LabelSet.load(write_labels(tmp_path / "labels", index))
    for row in range(index.num_utterances):
        samples = int(index.rows[row]["samples"])
        for start in range(0, samples - 4_000, 2_240):
            length = (samples - start) // 320 * 320
            crop_T = labels.crop(row, start, CLOCK.num_frames(length), CLOCK)
            # by brute force over samples: the label that was made from just the samples that the frame sees
            for t, label in enumerate(crop_T.tolist()):
                seen = start + CLOCK.offset_samples + t * CLOCK.stride_samples
                (made,) = [u for u in range(CLOCK.num_frames(samples)) if CLOCK.offset_samples + u * 320 == seen]
                assert label == (made + row) % 200
            assert crop_T.dtype == np.int64


def test_other_fields_of_the_same_centre_map_to_the_same_label(
    index: DatasetIndex, tmp_path: Path, write_labels: Callable[..., Path]
) -> None:
    labels = LabelSet.load(write_labels(tmp_path / "labels", index))
    stacked = FrameClock().then(400, 160).then(2, 2)  # two log-mel frames in one
    assert stacked.kernel_samples == 560
    frames = stacked.num_frames(4_800)
    assert labels.crop(7, 640, frames, stacked).tolist() == [(2 + t + 7) % 200 for t in range(frames)]


def test_the_last_frame_takes_the_label_before_where_labels_see_further(
    index: DatasetIndex, tmp_path: Path, write_labels: Callable[..., Path]
) -> None:
    far = FrameClock().then(640, 320)
    labels = LabelSet.load(write_labels(tmp_path / "labels", index, clock=far))
    samples = int(index.rows[5]["samples"])
    frames, have = CLOCK.num_frames(samples), far.num_frames(samples)
    assert frames == have + 1
    crop = labels.crop(5, 0, frames, CLOCK).tolist()
    assert crop == [(t + 5) % 200 for t in range(have)] + [(have - 1 + 5) % 200]
    with pytest.raises(DataError, match="labels"):
        labels.crop(5, 0, frames + 1, CLOCK)


def test_labels_that_could_lack_two_frames_are_refused_at_the_start(
    index: DatasetIndex, tmp_path: Path, write_labels: Callable[..., Path]
) -> None:
    wide = FrameClock(kernel_samples=400 + 960, stride_samples=320, offset_samples=-480)
    assert wide.agrees_with(CLOCK)
    labels = LabelSet.load(write_labels(tmp_path / "labels", index, clock=wide))
    with pytest.raises(ConfigError, match="1360 samples every 320"):
        labels.check(index, CLOCK)


def test_unaligned_crops_and_unlabelled_utterances_are_errors(
    index: DatasetIndex, tmp_path: Path, write_labels: Callable[..., Path]
) -> None:
    labels = LabelSet.load(write_labels(tmp_path / "labels", index, empty=(3,)))
    with pytest.raises(ConfigError, match="between the labels"):
        labels.crop(0, 100, 4, CLOCK)
    with pytest.raises(DataError, match="row 3 has 0 labels"):
        labels.crop(3, 0, 4, CLOCK)
    assert labels.utterance(3).size == 0


def test_labels_of_something_else_are_refused_with_the_reason(
    index: DatasetIndex, tmp_path: Path, write_labels: Callable[..., Path]
) -> None:
    labels = LabelSet.load(write_labels(tmp_path / "labels", index))
    labels.check(index, CLOCK, 200)
    with pytest.raises(ConfigError, match=r"target.num_classes=200"):
        labels.check(index, CLOCK, 100)
    with pytest.raises(ConfigError, match="every 160"):
        labels.check(index, FrameClock().then(400, 160))
    index.content_hash = "another"
    with pytest.raises(DataError, match="other data"):
        labels.check(index, CLOCK, 200)


def test_labels_come_back_from_another_process_as_their_path(
    index: DatasetIndex, tmp_path: Path, write_labels: Callable[..., Path]
) -> None:
    labels = LabelSet.load(write_labels(tmp_path / "labels", index))
    data = pickle.dumps(labels)
    assert len(data) < 1_000
    assert np.array_equal(pickle.loads(data).utterance(4), labels.utterance(4))  # noqa: S301
    assert pickle.loads(data).card == labels.card  # noqa: S301


def test_unfinished_and_damaged_labels_are_named(
    index: DatasetIndex, tmp_path: Path, write_labels: Callable[..., Path]
) -> None:
    writer = LabelWriter(tmp_path / "half", index)
    writer.write_shard(0, [np.zeros(3, dtype=np.int64)] * len(writer.rows_of(0)))
    with pytest.raises(DataError, match="no finished labels"):
        LabelSet.load(tmp_path / "half")
    path = write_labels(tmp_path / "labels", index)
    (path / "card.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        LabelSet.load(path)
