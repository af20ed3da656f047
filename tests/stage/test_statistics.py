from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.stage.frames import num_frames
from ossicle.stage.sampling import SPREAD
from ossicle.stage.statistics import feature_moments
from tests.stage.features import FEATURES, Counting, alone


def frames_of(index: DatasetIndex) -> np.ndarray:
    """All frames of a split, one utterance at a time."""
    waves = [torch.from_numpy(decode(index.read_audio(row))) for row in range(index.num_utterances)]
    return torch.cat([alone(wave_S) for wave_S in waves]).double().numpy()


def test_moments_are_those_of_all_frames_of_all_splits_where_as_many_are_wanted(synthetic_dataset: Path) -> None:
    indexes = [DatasetIndex.load(synthetic_dataset, split) for split in ("dev", "test")]
    mean_D, deviation_D = feature_moments(FEATURES, indexes, 10**9, seed=0)
    frames_PD = np.concatenate([frames_of(index) for index in indexes])
    np.testing.assert_allclose(mean_D.numpy(), frames_PD.mean(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(deviation_D.numpy(), frames_PD.std(0), rtol=1e-3, atol=1e-3)


def test_no_more_utterances_are_read_than_hold_what_is_wanted_and_the_seed_says_which(synthetic_dataset: Path) -> None:
    index = DatasetIndex.load(synthetic_dataset, "train")
    counting = Counting()
    first, _ = feature_moments(replace(FEATURES, extract=counting), [index], 400, seed=0)
    assert 0 < counting.utterances < index.num_utterances / 2
    again, other = (feature_moments(FEATURES, [index], 400, seed=seed)[0] for seed in (0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_is_wanted_is_shared_out_over_the_splits_by_what_they_hold(synthetic_dataset: Path) -> None:
    indexes = [DatasetIndex.load(synthetic_dataset, split) for split in ("train", "dev", "test")]
    frames = [num_frames(index, FEATURES.clock) for index in indexes]
    wanted = sum(int(frames_N.sum()) for frames_N in frames) // 3
    counting = Counting()
    feature_moments(replace(FEATURES, extract=counting), indexes, wanted, seed=0)
    # a third of each, and in each the one that is begun and a frame of the sample for which 16 are drawn
    longest = max(int(frames_N.max()) for frames_N in frames)
    assert wanted <= counting.frames < wanted + len(indexes) * (longest + SPREAD)


def test_data_without_a_frame_are_refused(synthetic_dataset: Path) -> None:
    index = DatasetIndex.load(synthetic_dataset, "dev")
    with pytest.raises(DataError, match="no frame"):
        feature_moments(replace(FEATURES, clock=FrameClock().then(10**9, 320)), [index], 400, seed=0)
