"""Frames to a lower rate and back."""

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.core.shapes import Bool, Float


def pool_frames(
    x_BTD: Float[Tensor, "B T D"], factor: int, valid_BT: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, "B U D"]:
    """The mean of every ``factor`` frames; of those that are there and real, at a row's end.

    Args:
        x_BTD: Frames, zero where they are not real, shape (B, T, D).
        factor: Frames that become one.
        valid_BT: True where a frame is real, or None where all are.

    Returns:
        Shape (B, ceil(T / factor), D); real where the first frame of a group is.
    """
    num_frames = x_BTD.shape[1]
    missing = -num_frames % factor
    groups_BUD = functional.pad(x_BTD, (0, 0, 0, missing)).unflatten(1, (-1, factor)).sum(2)
    if valid_BT is None:
        there_T = torch.ones(num_frames, device=x_BTD.device, dtype=x_BTD.dtype)
        counts = functional.pad(there_T, (0, missing)).unflatten(0, (-1, factor)).sum(1)
    else:
        counts = functional.pad(valid_BT.to(x_BTD.dtype), (0, missing)).unflatten(1, (-1, factor)).sum(2)
    return groups_BUD / counts.clamp(min=1)[..., None]


def repeat_frames(x_BUD: Float[Tensor, "B U D"], factor: int, num_frames: int) -> Float[Tensor, "B T D"]:
    """Each frame ``factor`` times, cut to ``num_frames``."""
    return x_BUD[:, :, None].expand(-1, -1, factor, -1).flatten(1, 2)[:, :num_frames]
