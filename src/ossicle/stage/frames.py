"""Whole utterances to frames, in padded batches of like lengths: what is clustered and labelled, never written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.data.index import DatasetIndex
from ossicle.data.quarantine import Quarantine
from ossicle.data.utterances import Wave, decode_batches, length_batches

_CPU = torch.device("cpu")

Extract = Callable[[Tensor, Sequence[int]], Tensor]
"""Waveforms, float32 on the CPU, shape (B, S), and how many samples of each are real, to the real frames of all of them
end to end, on any device, shape (P, D), as many of each as the clock says."""


@dataclass(frozen=True, slots=True)
class Features:
    """Frames that can be made of any waveform.

    Args:
        extract: Makes them.
        clock: Their clock.
        batch_s: Audio in a padded batch, in seconds: bounds the memory.
        threads: Threads that decode.
        device: Where the frames are made and clustered.
    """

    extract: Extract
    clock: FrameClock
    batch_s: float = 60.0
    threads: int = 1
    device: torch.device = _CPU


@dataclass(frozen=True, slots=True)
class Packed:
    """Frames of several utterances, end to end.

    Args:
        rows: Rows of the index.
        counts: Frames of each.
        frames_PD: Float32, shape (P, D).
    """

    rows: tuple[int, ...]
    counts: tuple[int, ...]
    frames_PD: Tensor


def num_frames(index: DatasetIndex, clock: FrameClock) -> NDArray[np.int64]:
    """Frames of every utterance by what the index says of its length, shape (N,)."""
    room_N = index.rows["samples"].astype(np.int64) - clock.num_samples(1)
    return np.maximum(0, room_N // clock.stride_samples + 1)


def packed_frames(
    features: Features, index: DatasetIndex, rows: Sequence[int], quarantine: Quarantine
) -> Iterator[Packed]:
    """Frames of utterances, batch after batch; utterances too short for a frame, or unreadable, are left out.

    Args:
        features: What is made of them.
        index: The split.
        rows: Rows of the index; they come longest first.
        quarantine: Takes the utterances that cannot be read.

    Raises:
        ConfigError: The features are off their clock.
        DataError: A feature is not finite.
    """
    for batch in decode_batches(
        index, length_batches(index, rows, features.batch_s), quarantine, threads=features.threads
    ):
        long_enough = [(row, wave_S) for row, wave_S in batch if features.clock.num_frames(len(wave_S))]
        if long_enough:
            yield _pack(features, long_enough)


def _pack(features: Features, batch: list[tuple[int, Wave]]) -> Packed:
    lengths = [len(wave_S) for _, wave_S in batch]
    waveform_BS = torch.zeros(len(batch), max(lengths))
    for place, (_, wave_S) in enumerate(batch):
        waveform_BS[place, : len(wave_S)] = torch.from_numpy(wave_S)
    frames_PD = features.extract(waveform_BS, lengths).float()
    counts = tuple(features.clock.num_frames(length) for length in lengths)
    if frames_PD.ndim != 2 or len(frames_PD) != sum(counts):
        raise ConfigError(
            f"the features of {len(batch)} utterances have shape {tuple(frames_PD.shape)}, and their clock says"
            f" {sum(counts)} frames",
            "give the clock that the features are made on",
        )
    if not bool(frames_PD.isfinite().all()):
        raise DataError(
            f"features of the rows {', '.join(str(row) for row, _ in batch)} are not finite",
            "the checkpoint has diverged, or the audio is damaged: take an earlier checkpoint",
        )
    return Packed(tuple(row for row, _ in batch), counts, frames_PD)
