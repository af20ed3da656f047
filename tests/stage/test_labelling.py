import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score
from torch import Tensor

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet
from ossicle.ops.kmeans import kmeans
from ossicle.ops.spectral import mfcc, spectral_clock
from ossicle.stage import labelling
from ossicle.stage.labelling import agreement, label_path, label_quality, make_labels

CLOCK = spectral_clock(hop_ms=20)
SOURCE = {"features": "mfcc", "hop_ms": 20}


def extract(waveform_1S: Tensor) -> Tensor:
    return mfcc(waveform_1S, hop_ms=20)[0]


class Counting:
    """Extracts, counts, and is killed at a given utterance."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.calls = 0
        self.killed_at = killed_at

    def __call__(self, waveform_1S: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.killed_at:
            raise KeyboardInterrupt
        return extract(waveform_1S)


@pytest.fixture
def index(synthetic_dataset: Path) -> DatasetIndex:
    return DatasetIndex.load(synthetic_dataset, "train")


def make(
    index: DatasetIndex, out: Path, features: labelling.Extract = extract, clusters: int = 40, **more: int
) -> Path:
    arguments = {"sample_frames": 4_000, "seed": 0, **more}
    return make_labels(index, features, CLOCK, out, clusters=clusters, source=SOURCE, **arguments)


def test_every_frame_has_the_class_of_its_nearest_centroid(index: DatasetIndex, tmp_path: Path) -> None:
    path = make(index, tmp_path)
    labels = LabelSet.load(path)
    labels.check(index, CLOCK, 40)
    centroids_VD = np.load(path / "centroids.npy").astype(np.float64)
    everything, squares = [], 0.0
    for row in range(index.num_utterances):
        frames_TD = extract(torch.from_numpy(decode(index.read_audio(row)))[None]).double().numpy()
        distances_TV = ((frames_TD[:, None] - centroids_VD[None]) ** 2).sum(-1)
        assert labels.utterance(row).dtype == np.int16
        assert labels.utterance(row).tolist() == distances_TV.argmin(1).tolist()
        everything.extend(distances_TV.argmin(1).tolist())
        squares += float(distances_TV.min(1).sum())
    counts = np.bincount(everything, minlength=40)
    card = labels.card
    assert card.num_frames == len(everything) == counts.sum()
    assert card.inertia == pytest.approx(squares / len(everything), rel=1e-5)
    assert card.entropy_nats == pytest.approx(entropy(counts))
    assert card.perplexity == pytest.approx(math.exp(entropy(counts)))
    assert card.dead_classes == int((counts == 0).sum())
    assert card.source == SOURCE
    assert card.clock == CLOCK
    assert card.seconds > 0


def test_nothing_but_labels_is_written(index: DatasetIndex, tmp_path: Path) -> None:
    path = make(index, tmp_path)
    names = {file.name for file in path.iterdir()}
    shards = {f"shard-{shard:06d}.npy" for shard in range(len(index.shard_paths))}
    assert names == {"card.json", "offsets.npy", "centroids.npy", *shards}
    assert len(shards) > 1


def test_asking_again_does_no_work_and_asking_for_something_else_does(index: DatasetIndex, tmp_path: Path) -> None:
    path = make(index, tmp_path)
    counting = Counting()
    assert make(index, tmp_path, counting) == path
    assert counting.calls == 0
    assert label_path(index, CLOCK, tmp_path, clusters=40, sample_frames=4_000, seed=0, source=SOURCE) == path
    assert make(index, tmp_path, seed=1) != path
    assert make(index, tmp_path, clusters=20) != path


def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_labels(index: DatasetIndex, tmp_path: Path) -> None:
    whole = make(index, tmp_path / "whole")
    full = Counting()
    make(index, tmp_path / "count", full)
    sizes = np.bincount(index.rows["shard"])
    unfinished = int(sizes[-2:].sum())
    assert sizes[-2] > 1
    killed = Counting(killed_at=full.calls - unfinished + 2)  # at the second utterance of the last shard but one
    with pytest.raises(KeyboardInterrupt):
        make(index, tmp_path / "killed", killed)
    again = Counting()
    path = make(index, tmp_path / "killed", again)
    assert again.calls == unfinished  # neither the sample nor a finished shard is read again
    for file in whole.glob("*.npy"):
        assert (path / file.name).read_bytes() == file.read_bytes()
    assert LabelSet.load(path).card.inertia == LabelSet.load(whole).card.inertia


def test_the_sample_reads_few_utterances_and_takes_about_what_is_asked(index: DatasetIndex) -> None:
    total = sum(CLOCK.num_frames(int(samples)) for samples in index.rows["samples"])
    counting = Counting()
    sample = labelling._sample(index, counting, CLOCK, sample_frames=total // 8, seed=0)
    assert counting.calls == math.ceil(index.num_utterances / 2)
    assert 0.6 * total / 8 < len(sample) < 1.5 * total / 8
    everything = labelling._sample(index, extract, CLOCK, sample_frames=10 * total, seed=0)
    assert len(everything) == total


def test_clusters_of_a_small_sample_are_nearly_as_good_as_those_of_all_frames(
    index: DatasetIndex, tmp_path: Path
) -> None:
    everything = labelling._sample(index, extract, CLOCK, sample_frames=10**9, seed=0)
    best = kmeans(everything, 10, seed=0).inertia
    assert LabelSet.load(make(index, tmp_path, clusters=10, sample_frames=2_000)).card.inertia < 1.05 * best


def test_features_off_their_clock_are_refused(index: DatasetIndex, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clock says"):
        make_labels(
            index, extract, FrameClock().then(400, 160), tmp_path, clusters=4, sample_frames=100, seed=0, source={}
        )


@pytest.mark.parametrize(("clusters", "sample"), [(1, 100), (40_000, 50_000), (40, 20)])
def test_impossible_numbers_are_refused(index: DatasetIndex, tmp_path: Path, clusters: int, sample: int) -> None:
    with pytest.raises(ConfigError):
        make(index, tmp_path, clusters=clusters, sample_frames=sample)


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
    labels = LabelSet.load(make(index, tmp_path))
    phones, classes = [], []
    for row in range(index.num_utterances):
        utterance = index.read_meta(row)
        for t, label in enumerate(labels.utterance(row).tolist()):
            for phone in utterance.phones:
                if phone.start <= CLOCK.centre_samples(t) < phone.end:
                    phones.append(phone.symbol)
                    classes.append(label)
    found = label_quality(labels, index)
    assert found["frames"] == len(phones) > 1_000
    _, symbol = np.unique(phones, return_inverse=True)
    assert found["pnmi"] == pytest.approx(mutual_info_score(symbol, classes) / entropy(np.bincount(symbol)))
    assert found["entropy"] == pytest.approx(entropy(np.bincount(classes)))
    assert 0.1 < found["pnmi"] < 1
    assert found["purity"] > np.bincount(symbol).max() / len(symbol)


def test_labels_of_other_data_have_no_quality(index: DatasetIndex, synthetic_dataset: Path, tmp_path: Path) -> None:
    labels = LabelSet.load(make(index, tmp_path))
    with pytest.raises(DataError, match="other data"):
        label_quality(labels, DatasetIndex.load(synthetic_dataset, "test"))
