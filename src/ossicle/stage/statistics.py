"""Mean and deviation of features over a sample of whole utterances: what a norm of all data is given once."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ossicle.core.errors import DataError
from ossicle.core.shapes import Float
from ossicle.data.index import DatasetIndex
from ossicle.data.quarantine import Quarantine
from ossicle.stage.frames import Features, num_frames, packed_frames
from ossicle.stage.sampling import SPREAD, drawn_utterances


def feature_moments(
    features: Features, indexes: Sequence[DatasetIndex], num_wanted: int, seed: int
) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and deviation (of the population) of each channel, summed in float64.

    Args:
        features: What is measured.
        indexes: The splits; each is drawn from as much as it holds.
        num_wanted: Utterances are drawn until they hold so many frames; all where there are fewer.
        seed: Determines which.

    Returns:
        Mean and deviation, float32, shape (D,), on the CPU. The same on every machine up to rounding.

    Raises:
        DataError: There is no frame, or a feature is not finite.
    """
    frames_by_index = [num_frames(index, features.clock) for index in indexes]
    total = sum(int(frames_N.sum()) for frames_N in frames_by_index)
    count = 0
    sums, squares = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for index, frames_N in zip(indexes, frames_by_index, strict=True):
        share = num_wanted * int(frames_N.sum()) / max(1, total)
        rows = drawn_utterances(frames_N, math.ceil(share / SPREAD), seed).tolist() if share else []
        # what is unreadable is named and counted in training
        for packed in packed_frames(features, index, rows, Quarantine(None, 1.0)):
            frames_PD = packed.frames_PD.cpu().double()
            count += len(frames_PD)
            sums, squares = sums + frames_PD.sum(0), squares + frames_PD.square().sum(0)
    if not count:
        raise DataError("there is no frame to measure", "prepare longer utterances")
    mean_D = sums / count
    return mean_D.float(), (squares / count - mean_D.square()).clamp(min=0).sqrt().float()
