from dataclasses import replace

import pytest
import torch
import torchaudio
from scipy import stats

from ossicle.augmentation.speed import Speed
from ossicle.core.errors import DataError
from tests.augmentation.conftest import CLOCK, make_batch

SAMPLES = 8_000
MADE = (SAMPLES - 1) * 10 // 11 + 1


def test_rows_are_cut_to_one_length_and_those_not_chosen_keep_their_beginning_and_labels() -> None:
    batch = make_batch(30, SAMPLES)
    after = Speed(CLOCK, probability=0.5)(batch, seed=0)
    frames = CLOCK.num_frames(MADE)
    assert after.waveform_BS.shape == (30, MADE)
    assert after.labels_BT.shape == (30, frames)
    assert after.clean_BS is None  # speech at another speed is clean speech
    plain = (after.waveform_BS == batch.waveform_BS[:, :MADE]).all(1)
    assert 5 < int(plain.sum()) < 25
    assert torch.equal(after.labels_BT[plain], batch.labels_BT[plain][:, :frames])
    assert (after.labels_BT[~plain] != batch.labels_BT[~plain][:, :frames]).any(1).all()


def test_a_fast_row_is_torchaudios_and_its_last_label_lies_near_the_end_of_the_crop() -> None:
    batch = make_batch(4, SAMPLES)
    after = Speed(CLOCK, factors=(1.1,), probability=1.0)(batch, seed=0)
    theirs = torchaudio.functional.resample(batch.waveform_BS, 11, 10, lowpass_filter_width=16, rolloff=0.95)
    torch.testing.assert_close(after.waveform_BS[:, :-20], theirs[:, : MADE - 20], atol=2e-5, rtol=0)
    came_from = 1.1 * CLOCK.centre_samples(CLOCK.num_frames(MADE) - 1)
    expected = round((came_from - CLOCK.centre_samples(0)) / CLOCK.stride_samples)
    assert (after.labels_BT[:, -1] == min(expected, CLOCK.num_frames(SAMPLES) - 1)).all()


def test_the_clean_waveform_is_moved_as_the_heard_one() -> None:
    batch = make_batch(8, SAMPLES)
    both = replace(batch, clean_BS=batch.waveform_BS * 0.5)
    after = Speed(CLOCK)(both, seed=0)
    torch.testing.assert_close(after.clean_BS, after.waveform_BS * 0.5)


def test_factors_are_taken_equally_often_and_a_third_of_the_rows_stays() -> None:
    tone = torch.sin(torch.arange(3_000) * 2 * torch.pi * 500 / 16_000).repeat(50, 1)
    counts = torch.zeros(3)
    for position in range(20):
        after = Speed(CLOCK)(replace(make_batch(50, 3_000, position), waveform_BS=tone), seed=0)
        crossings = ((after.waveform_BS[:, 1:] > 0) != (after.waveform_BS[:, :-1] > 0)).sum(1)
        seconds = after.waveform_BS.shape[1] / 16_000
        speed = (crossings / seconds / 1_000 - 0.85) * 10  # 0.9, 1.0 and 1.1 fall into bins 0, 1 and 2
        counts += torch.bincount(speed.long(), minlength=3)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_batches_without_labels_stay_without() -> None:
    assert Speed(CLOCK)(make_batch(labels=False), seed=0).labels_BT is None


def test_crops_too_short_for_a_frame_are_refused() -> None:
    with pytest.raises(DataError, match="min_crop_s"):
        Speed(CLOCK)(make_batch(2, 420), seed=0)
