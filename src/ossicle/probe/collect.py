"""Utterances held in memory, and the features that a featurizer makes of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.core.shapes import Float
from ossicle.data.utterance import Utterance
from ossicle.probe.features import Featurizer

_FEWEST_FRAMES = 2


@dataclass(frozen=True, slots=True)
class Clip:
    """An utterance with its decoded sound: float32 samples in [-1, 1], shape (S,)."""

    utterance: Utterance
    waveform_S: NDArray[np.float32]


def take_clips(
    utterances: Iterable[tuple[int, Utterance, NDArray[np.float32]]], *, budget_s: float, longest_s: float, rate_hz: int
) -> tuple[Clip, ...]:
    """Whole utterances in the order given until a budget of audio is full; longer ones than a bound are passed over.

    Args:
        utterances: (row, utterance, waveform), best in an order shuffled by a seed.
        budget_s: Seconds of audio to take.
        longest_s: Longest utterance to take, in seconds: bounds the memory of attention.
        rate_hz: Samples a second.
    """
    clips: list[Clip] = []
    room = budget_s * rate_hz
    for _, utterance, waveform_S in utterances:
        if len(waveform_S) > longest_s * rate_hz:
            continue
        if len(waveform_S) > room:
            break
        room -= len(waveform_S)
        clips.append(Clip(utterance, waveform_S))
    return tuple(clips)


def long_enough(clips: Sequence[Clip], clocks: Sequence[FrameClock]) -> tuple[Clip, ...]:
    """The clips that give frames on every clock, so that all features are tested on the same utterances."""
    fewest = max(clock.num_samples(_FEWEST_FRAMES) for clock in clocks)
    return tuple(clip for clip in clips if len(clip.waveform_S) >= fewest)


@dataclass(frozen=True)
class FeatureSet:
    """One featurizer's view of one split's utterances.

    Args:
        utterances: What is known of them, U of them.
        clock: The clock of the frames.
        offsets: First frame of every utterance in the packed frames, and their end, shape (U + 1,).
        frames_LPD: Frames of all utterances end to end, float32, shape (L, P, D); None where no task needs frames.
        pooled_LUE: Mean and standard deviation over each utterance's frames, float32, shape (L, U, 2 D).
    """

    utterances: tuple[Utterance, ...]
    clock: FrameClock
    offsets: NDArray[np.int64]
    frames_LPD: Tensor | None
    pooled_LUE: Tensor

    @property
    def frames(self) -> Tensor:
        """The frames, shape (L, P, D)."""
        if self.frames_LPD is None:
            raise ValueError("this set was collected without frames")
        return self.frames_LPD

    @property
    def owners(self) -> NDArray[np.int64]:
        """The utterance of every frame, shape (P,)."""
        return np.repeat(np.arange(len(self.utterances)), np.diff(self.offsets))


def pool(frames_LTD: Float[Tensor, "L T D"]) -> Float[Tensor, "L E"]:
    """Mean and standard deviation over frames, side by side."""
    std_LD, mean_LD = torch.std_mean(frames_LTD, dim=1, correction=0)
    return torch.cat([mean_LD, std_LD], dim=-1)


def collect(featurizer: Featurizer, clips: Sequence[Clip], *, keep_frames: bool) -> FeatureSet:
    """Extract the features of clips.

    Raises:
        DataError: A feature is not finite.
    """
    counts = [featurizer.clock.num_frames(len(clip.waveform_S)) for clip in clips]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    packed_LPD: Tensor | None = None
    pooled: list[Tensor] = []
    for index, clip in enumerate(clips):
        frames_LTD = featurizer.extract(torch.from_numpy(clip.waveform_S))
        summary_LE = pool(frames_LTD)
        if not bool(summary_LE.isfinite().all()):
            raise DataError(
                f"{featurizer.name} features of utterance {clip.utterance.id!r} are not finite",
                "the checkpoint has diverged, or the audio is damaged: probe an earlier checkpoint, run ossicle doctor",
            )
        pooled.append(summary_LE)
        if keep_frames:
            if packed_LPD is None:
                layers, _, dim = frames_LTD.shape
                packed_LPD = torch.empty((layers, int(offsets[-1]), dim), device=frames_LTD.device)
            packed_LPD[:, offsets[index] : offsets[index + 1]] = frames_LTD
    return FeatureSet(
        utterances=tuple(clip.utterance for clip in clips),
        clock=featurizer.clock,
        offsets=offsets,
        frames_LPD=packed_LPD,
        pooled_LUE=torch.stack(pooled, dim=1),
    )


def phone_of_frames(utterance: Utterance, clock: FrameClock, num_frames: int) -> list[str | None]:
    """The phone that is spoken at each frame's centre, or None where no phone is stated."""
    if not utterance.phones:
        return [None] * num_frames
    starts = np.array([phone.start for phone in utterance.phones])
    ends = np.array([phone.end for phone in utterance.phones])
    centres = clock.centre_samples(0) + clock.stride_samples * np.arange(num_frames)
    places = np.searchsorted(starts, centres, side="right") - 1
    inside = (places >= 0) & (centres < ends[places])
    return [
        utterance.phones[place].symbol if hit else None
        for place, hit in zip(places.tolist(), inside.tolist(), strict=True)
    ]
