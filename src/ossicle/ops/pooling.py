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


def relative_places(valid_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Where a frame's middle stands among the real frames of its row, in (0, 1) for those that are real.

    Args:
        valid_BT: True where a frame is real.
    """
    count_B1 = valid_BT.sum(1, keepdim=True).clamp(min=1)
    return (valid_BT.cumsum(1) - 0.5) / count_B1


def interpolate_grid(grid_SG: Float[Tensor, "S G"], place_BT: Float[Tensor, "B T"]) -> Float[Tensor, "B S T"]:
    """Functions on [0, 1], given at the middles of G equal parts, at any places: linear between, constant at the ends.

    Args:
        grid_SG: Values of S functions, shape (S, G).
        place_BT: Where they are read, shape (B, T).
    """
    last = grid_SG.shape[1] - 1
    at_BT = (place_BT * grid_SG.shape[1] - 0.5).clamp(0, last)
    left_BT = at_BT.floor().long().clamp(max=max(last - 1, 0))
    share_BT = (at_BT - left_BT).to(grid_SG.dtype)
    right_BT = (left_BT + 1).clamp(max=last)
    read_SBT = torch.lerp(grid_SG[:, left_BT], grid_SG[:, right_BT], share_BT)
    return read_SBT.transpose(0, 1)
