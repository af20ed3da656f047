"""Features that tests cluster: MFCCs every 20 ms, counted as they are made."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ossicle.ops.spectral import mfcc, spectral_clock
from ossicle.stage.frames import Features
from ossicle.stage.labelling import LabelRecipe

CLOCK = spectral_clock(hop_ms=20)
SOURCE = {"features": "mfcc", "hop_ms": 20}
RECIPE = LabelRecipe(SOURCE, clusters=40, sample_frames=4_000, seed=0)


def extract(waveform_BS: Tensor, lengths: Sequence[int]) -> Tensor:
    return real_frames(mfcc(waveform_BS, hop_ms=20, lengths_B=torch.tensor(lengths)), lengths)


def real_frames(frames_BTD: Tensor, lengths: Sequence[int]) -> Tensor:
    """The frames of rows that are as long as their samples give, end to end."""
    return torch.cat([x_TD[: CLOCK.num_frames(length)] for x_TD, length in zip(frames_BTD, lengths, strict=True)])


FEATURES = Features(extract, CLOCK, batch_s=20)
ONE_BY_ONE = replace(FEATURES, batch_s=1e-3)


class Counting:
    """Extracts, counts utterances and frames, and is killed at a given one."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.utterances = self.frames = 0
        self.largest_s = 0.0
        self.killed_at = killed_at

    def __call__(self, waveform_BS: Tensor, lengths: Sequence[int]) -> Tensor:
        for _ in waveform_BS:
            self.utterances += 1
            if self.utterances == self.killed_at:
                raise KeyboardInterrupt
        self.largest_s = max(self.largest_s, waveform_BS.numel() / 16_000)
        frames_PD = extract(waveform_BS, lengths)
        self.frames += len(frames_PD)
        return frames_PD

    def features(self, batch_s: float = 20) -> Features:
        return replace(FEATURES, extract=self, batch_s=batch_s)


def alone(wave_S: Tensor) -> Tensor:
    """The features of one utterance by itself, (T, D)."""
    return extract(wave_S[None], [len(wave_S)]) if len(wave_S) else torch.zeros(0, 39)
