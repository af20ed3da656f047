import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet
from ossicle.data.utterance import Phone, Utterance
from ossicle.stage.labelling import make_labels
from ossicle.stage.quality import agreement, count_pairs, has_phones, label_quality
from tests.stage.features import CLOCK, FEATURES, RECIPE


@pytest.fixture
def index(synthetic_dataset: Path) -> DatasetIndex:
    return DatasetIndex.load(synthetic_dataset, "train")


def test_phones_and_labels_of_a_table_by_hand() -> None:
    # two phones, three labels; 20 frames
    counts_YV = np.array([[6.0, 2.0, 0.0], [1.0, 3.0, 8.0]])
    found = agreement(counts_YV)
    assert found["purity"] == pytest.approx((6 + 3 + 8) / 20)
    assert found["cluster_purity"] == pytest.approx((6 + 8) / 20)
    phone_entropy = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    information = sum(
        p * math.log(p / (y * z))
        for p, y, z in [(0.3, 0.4, 0.35), (0.1, 0.4, 0.25), (0.05, 0.6, 0.35), (0.15, 0.6, 0.25), (0.4, 0.6, 0.4)]
    )
    assert found["pnmi"] == pytest.approx(information / phone_entropy)
    assert found["entropy"] == pytest.approx(-sum(z * math.log(z) for z in (0.35, 0.25, 0.4)))


def test_label_quality_counts_the_phone_at_each_frames_centre(index: DatasetIndex, tmp_path: Path) -> None:
    labels = LabelSet.load(make_labels(index, FEATURES, tmp_path, RECIPE))
    phones, classes = [], []
    for row in range(index.num_utterances):
        utterance = index.read_meta(row)
        for t, label in enumerate(labels.utterance(row).tolist()):
            for phone in utterance.phones:
                if phone.start <= CLOCK.centre_samples(t) < phone.end:
                    phones.append(phone.symbol)
                    classes.append(label)
    assert has_phones(index)
    found = label_quality(labels, index)
    assert found["frames"] == len(phones) > 1_000
    _, symbol = np.unique(phones, return_inverse=True)
    assert found["pnmi"] == pytest.approx(mutual_info_score(symbol, classes) / entropy(np.bincount(symbol)))
    assert found["entropy"] == pytest.approx(entropy(np.bincount(classes)))
    assert 0.1 < found["pnmi"] < 1
    assert found["purity"] > np.bincount(symbol).max() / len(symbol)


def test_labels_of_other_data_have_no_quality(index: DatasetIndex, synthetic_dataset: Path, tmp_path: Path) -> None:
    labels = LabelSet.load(make_labels(index, FEATURES, tmp_path, RECIPE))
    with pytest.raises(DataError, match="other data"):
        label_quality(labels, DatasetIndex.load(synthetic_dataset, "test"))


def test_a_frame_at_the_end_of_a_phone_is_not_of_it() -> None:
    utterance = Utterance("u", "train", phones=(Phone(0, 100, "a"), Phone(200, 300, "b")))
    clock = FrameClock(kernel_samples=1, stride_samples=100)  # centres: 0, 100, 200, 300
    assert count_pairs([(utterance, np.array([5, 6, 7, 8]))], clock) == {("a", 5): 1, ("b", 7): 1}
