from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.data.utterance import Phone, Utterance
from ossicle.probe.collect import Clip, collect, long_enough, phone_of_frames, take_clips
from ossicle.probe.features import Featurizer


def test_a_frames_phone_is_the_one_at_its_centre() -> None:
    utterance = Utterance("u", "train", phones=(Phone(0, 500, "a"), Phone(500, 900, "b"), Phone(1000, 1300, "c")))
    clock = FrameClock(kernel_samples=400, stride_samples=200)
    # centres: 199.5, 399.5, 599.5, 799.5, 999.5, 1199.5, 1399.5; nothing is stated from 900 to 1000 and after 1300
    assert phone_of_frames(utterance, clock, 7) == ["a", "a", "b", "b", None, "c", None]


def test_an_utterance_without_phones_has_none() -> None:
    assert phone_of_frames(Utterance("u", "train"), FrameClock(400, 320), 3) == [None, None, None]


def test_clips_fill_the_budget_and_pass_over_long_ones() -> None:
    lengths = [1.0, 5.0, 2.0, 2.0, 1.0]
    stream = [(i, Utterance(str(i), "train"), np.zeros(int(s * 100), np.float32)) for i, s in enumerate(lengths)]
    clips = take_clips(stream, budget_s=4.0, longest_s=3.0, rate_hz=100)
    assert [clip.utterance.id for clip in clips] == ["0", "2"]


def test_clips_that_are_too_short_for_any_clock_are_left_out_for_all() -> None:
    clips = [Clip(Utterance(str(n), "train"), np.zeros(n, np.float32)) for n in (300, 720, 1500)]
    kept = long_enough(clips, [FrameClock(400, 320), FrameClock(1000, 320)])
    assert [len(clip.waveform_S) for clip in kept] == [1500]


def test_packed_frames_and_pools_are_those_of_each_utterance(
    clip: Callable[..., Clip], planted: Callable[..., Featurizer]
) -> None:
    clips = [clip("0", "train", 0, frames=8), clip("1", "train", 1, frames=20)]
    featurizer = planted("planted")
    found = collect(featurizer, clips, keep_frames=True)
    second = featurizer.extract(torch.from_numpy(clips[1].waveform_S))
    assert found.offsets.tolist() == [0, 8, 28]
    assert found.owners.tolist() == [0] * 8 + [1] * 20
    torch.testing.assert_close(found.frames[:, 8:], second)
    torch.testing.assert_close(found.pooled_LUE[:, 1, :12], second.mean(1))
    torch.testing.assert_close(found.pooled_LUE[:, 1, 12:], second.std(1, correction=0))
    with pytest.raises(ValueError, match="without frames"):
        _ = collect(featurizer, clips, keep_frames=False).frames


def test_features_that_are_not_finite_stop_the_probe_and_name_the_utterance(clip: Callable[..., Clip]) -> None:
    class Broken(Featurizer):
        name = "broken"
        clock = FrameClock(320, 320)
        layers = ("0",)

        @override
        def extract(self, waveform_S: Tensor) -> Tensor:
            return torch.full((1, self.clock.num_frames(len(waveform_S)), 3), float("nan"))

    with pytest.raises(DataError, match="train-7"):
        collect(Broken(), [clip("7", "train", 0)], keep_frames=False)


def test_a_phone_ends_before_its_last_sample() -> None:
    utterance = Utterance("u", "train", phones=(Phone(0, 100, "a"), Phone(200, 300, "b")))
    clock = FrameClock(kernel_samples=1, stride_samples=100)  # centres: 0, 100, 200, 300
    assert phone_of_frames(utterance, clock, 4) == ["a", None, "b", None]
