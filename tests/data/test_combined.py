from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.data.combined import CombinedIndex, CombinedLabels, check_labels, name_in, samples_of
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet

CLOCK = FrameClock().then(400, 320)


@pytest.fixture
def index(ramps: Path) -> DatasetIndex:
    return DatasetIndex.load(ramps, "train")


def test_rows_of_several_datasets_are_numbered_one_after_another(index: DatasetIndex) -> None:
    both = CombinedIndex({"a": index, "b": index})
    assert both.num_utterances == len(both.rows) == 2 * index.num_utterances
    rows = np.array([0, 119, 60, 59, 61])
    assert samples_of(both)[rows].tolist() == index.rows["samples"][rows % 60].tolist()
    assert both.rows[61]["digest"] == index.rows[1]["digest"]
    assert both.read_audio(61) == index.read_audio(1) != both.read_audio(60)
    assert both.read_meta(119).id == index.read_meta(59).id
    assert both.audio_bytes(61) == len(index.read_audio(1))
    assert both.read_audio_part(61, 3, 10) == index.read_audio(1)[3:13]
    assert name_in(both, 61) == f"b: {name_in(index, 1)}"
    assert both.content_hash != CombinedIndex({"a": index}).content_hash


def test_sources_of_two_rates_are_refused(index: DatasetIndex, ramps: Path) -> None:
    other = DatasetIndex.load(ramps, "train")
    other.rate_hz = 8_000
    with pytest.raises(ConfigError, match="a 16000, b 8000"):
        CombinedIndex({"a": index, "b": other})


def test_labels_of_one_dataset_are_not_those_of_a_mixture(
    index: DatasetIndex, tmp_path: Path, write_labels: Callable[..., Path]
) -> None:
    labels = LabelSet.load(write_labels(tmp_path / "labels", index))
    both = CombinedIndex({"a": index, "b": index})
    check_labels(labels, index, CLOCK, 200)
    check_labels(CombinedLabels([labels, labels], both.offsets), both, CLOCK, 200)
    with pytest.raises(ConfigError, match="num_classes=200"):
        check_labels(CombinedLabels([labels, labels], both.offsets), both, CLOCK, 7)
    with pytest.raises(ConfigError, match="labels of each source"):
        check_labels(labels, both, CLOCK)
    other = LabelSet.load(write_labels(tmp_path / "fewer", index, num_classes=9))
    with pytest.raises(ConfigError, match="number of classes"):
        CombinedLabels([labels, other], both.offsets)
