import math
import shutil
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.peers import Alone
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet
from ossicle.ops.kmeans import kmeans, lloyd, mini_batch
from ossicle.stage.frames import Features
from ossicle.stage.labelling import LabelRecipe, label_path, make_labels
from ossicle.stage.sampling import draw_sample
from tests.stage.features import CLOCK, FEATURES, ONE_BY_ONE, RECIPE, SOURCE, Counting, alone


@pytest.fixture
def index(synthetic_dataset: Path) -> DatasetIndex:
    return DatasetIndex.load(synthetic_dataset, "train")


def make(index: DatasetIndex, out: Path, features: Features = FEATURES, **changes: object) -> Path:
    return make_labels(index, features, out, replace(RECIPE, **changes))


def test_every_frame_has_the_class_of_its_nearest_centroid(index: DatasetIndex, tmp_path: Path) -> None:
    path = make(index, tmp_path, ONE_BY_ONE)
    labels = LabelSet.load(path)
    labels.check(index, CLOCK, 40)
    centroids_VD = np.load(path / "centroids.npy").astype(np.float64)
    everything, squares = [], 0.0
    for row in range(index.num_utterances):
        frames_TD = alone(torch.from_numpy(decode(index.read_audio(row)))).double().numpy()
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
    assert (card.num_classes, card.clock, card.source) == (40, CLOCK, SOURCE)
    assert card.content_hash == index.content_hash
    assert card.seconds > 0


def test_batches_of_many_lengths_are_labelled_as_utterances_alone(index: DatasetIndex, tmp_path: Path) -> None:
    centroids = make(index, tmp_path / "alone", ONE_BY_ONE)
    one_by_one = LabelSet.load(centroids)
    counting = Counting()
    batched = LabelSet.load(make(index, tmp_path / "batched", counting.features(batch_s=30), centroids=centroids))
    assert counting.utterances == index.num_utterances
    assert 15 < counting.largest_s <= 30
    differing = total = 0
    for row in range(index.num_utterances):
        assert len(batched.utterance(row)) == len(one_by_one.utterance(row))
        differing += int((batched.utterance(row) != one_by_one.utterance(row)).sum())
        total += len(batched.utterance(row))
    assert differing <= 1e-3 * total  # frames between two centroids, to the last digit of float32
    assert batched.card.inertia == pytest.approx(one_by_one.card.inertia, rel=1e-6)


def test_nothing_but_labels_is_written_and_960_hours_of_them_need_less_than_a_gigabyte(
    index: DatasetIndex, tmp_path: Path
) -> None:
    path = make(index, tmp_path)
    names = {file.name for file in path.iterdir()}
    shards = {f"shard-{shard:06d}.npy" for shard in range(len(index.shard_paths))}
    assert names == {"card.json", "offsets.npy", "centroids.npy", *shards}
    assert len(shards) > 1
    header, place = 128, 24  # bytes of a file's head, and of an utterance's entry in the table
    frames = LabelSet.load(path).card.num_frames
    written = sum((path / name).stat().st_size for name in shards)
    assert written == 2 * frames + header * len(shards)
    assert (path / "offsets.npy").stat().st_size == header + place * index.num_utterances
    librispeech = {"hours": 960, "utterances": 281_241, "shards": 960}
    gigabytes = 2 * CLOCK.frames_per_s * 3600 * librispeech["hours"] / 1e9
    gigabytes += (place * librispeech["utterances"] + header * librispeech["shards"]) / 1e9
    assert gigabytes < 0.36


def test_asking_again_does_no_work_and_asking_for_something_else_does(index: DatasetIndex, tmp_path: Path) -> None:
    path = make(index, tmp_path)
    counting = Counting()
    assert make(index, tmp_path, counting.features()) == path
    assert counting.utterances == 0
    assert label_path(index, CLOCK, tmp_path, RECIPE) == path
    others = [{"seed": 1}, {"clusters": 20}, {"fit": "minibatch"}, {"source": {"features": "others"}}]
    assert len({path, *(make(index, tmp_path, **other) for other in others)}) == 5


def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_labels(index: DatasetIndex, tmp_path: Path) -> None:
    whole = make(index, tmp_path / "whole")
    full = Counting()
    make(index, tmp_path / "count", full.features())
    sizes = np.bincount(index.rows["shard"])
    unfinished = int(sizes[-2:].sum())
    assert sizes[-2] > 1
    killed = Counting(killed_at=full.utterances - unfinished + 2)  # at the second utterance of the last shard but one
    with pytest.raises(KeyboardInterrupt):
        make(index, tmp_path / "killed", killed.features())
    again = Counting()
    path = make(index, tmp_path / "killed", again.features())
    assert again.utterances == unfinished  # neither the sample nor a finished shard is read again
    for file in whole.glob("*.npy"):
        assert (path / file.name).read_bytes() == file.read_bytes()
    assert LabelSet.load(path).card.inertia == LabelSet.load(whole).card.inertia


@pytest.mark.parametrize("fit", ["lloyd", "minibatch"])
def test_clusters_of_a_small_sample_are_nearly_as_good_as_those_of_all_frames(
    index: DatasetIndex, tmp_path: Path, fit: str
) -> None:
    everything = draw_sample(FEATURES, index, 10**9, 0, Alone())
    best = kmeans(everything, 10, seed=0).inertia
    path = make(index, tmp_path, clusters=10, sample_frames=2_000, fit=fit)
    assert LabelSet.load(path).card.inertia < 1.05 * best


def test_another_dataset_is_labelled_by_the_same_centroids(
    index: DatasetIndex, synthetic_dataset: Path, tmp_path: Path
) -> None:
    path = make(index, tmp_path)
    other = DatasetIndex.load(synthetic_dataset, "dev")
    counting = Counting()
    theirs = make(other, tmp_path, counting.features(), centroids=path)
    assert counting.utterances == other.num_utterances  # no sample is drawn
    assert (theirs / "centroids.npy").read_bytes() == (path / "centroids.npy").read_bytes()
    assert theirs != make(other, tmp_path)
    for wrong in ({"clusters": 41}, {"source": {"features": "others"}}):
        with pytest.raises(ConfigError, match="are wanted"):
            make(other, tmp_path, centroids=path, **wrong)


def test_features_off_their_clock_are_refused(index: DatasetIndex, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clock says"):
        make(index, tmp_path, replace(FEATURES, clock=FrameClock().then(400, 160)))


def test_features_that_are_not_finite_are_refused(index: DatasetIndex, tmp_path: Path) -> None:
    diverged = replace(FEATURES, extract=lambda wave_BS, lengths: FEATURES.extract(wave_BS, lengths) / 0)
    with pytest.raises(DataError, match="not finite"):
        make(index, tmp_path, diverged)


@pytest.mark.parametrize(("clusters", "sample"), [(1, 100), (40_000, 50_000), (40, 20)])
def test_impossible_numbers_are_refused(clusters: int, sample: int) -> None:
    with pytest.raises(ConfigError):
        LabelRecipe(SOURCE, clusters, sample, seed=0)


def test_an_unknown_fit_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="choose from: lloyd, minibatch"):
        LabelRecipe(SOURCE, 10, 100, seed=0, fit="elkan")


def test_other_data_and_another_clock_have_labels_of_their_own(index: DatasetIndex, tmp_path: Path) -> None:
    other = copy(index)
    other.content_hash = "0" * 32
    paths = {label_path(index, CLOCK, tmp_path, RECIPE), label_path(other, CLOCK, tmp_path, RECIPE)}
    assert len(paths | {label_path(index, replace(CLOCK, offset_samples=5), tmp_path, RECIPE)}) == 3


@pytest.mark.parametrize("fit", ["lloyd", "minibatch"])
def test_the_recipe_decides_sample_seed_and_fit(index: DatasetIndex, tmp_path: Path, fit: str) -> None:
    path = make(index, tmp_path, seed=3, fit=fit, clusters=12)
    sample = draw_sample(FEATURES, index, RECIPE.sample_frames, 3, Alone())
    fitted = kmeans(sample, 12, seed=3, refine={"lloyd": lloyd, "minibatch": mini_batch}[fit])
    assert np.array_equal(np.load(path / "centroids.npy"), fitted.centroids_VD.numpy())


def test_what_cannot_be_read_has_no_labels_and_too_much_of_it_stops_the_run(
    synthetic_dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(synthetic_dataset, tmp_path / "data")
    index = DatasetIndex.load(tmp_path / "data", "train")
    bad = range(0, index.num_utterances, 4)
    for row in bad:
        entry = index.rows[row]
        with index.shard_paths[int(entry["shard"])].open("r+b") as file:
            file.seek(int(entry["audio_offset"]))
            file.write(bytes(int(entry["audio_bytes"])))
    recipe = replace(RECIPE, clusters=4, sample_frames=400)
    with pytest.raises(DataError, match="inputs are bad"):
        make_labels(index, FEATURES, tmp_path / "few", recipe, max_bad_fraction=0.1)
    labels = LabelSet.load(make_labels(index, FEATURES, tmp_path / "many", recipe, max_bad_fraction=0.9))
    counts = [len(labels.utterance(row)) for row in range(index.num_utterances)]
    assert [row for row, count in enumerate(counts) if count == 0] == list(bad)
