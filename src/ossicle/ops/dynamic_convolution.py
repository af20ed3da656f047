"""Convolution over time with kernels of each frame's own."""

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.core.shapes import Float


def dynamic_convolution(
    x_BTD: Float[Tensor, "B T D"], weights_BTHK: Float[Tensor, "B T H taps"]
) -> Float[Tensor, "B T D"]:
    """Each frame is a weighted sum of its neighbours (arXiv 1901.10430, section 3.2), zeros beyond the row.

    A head's weights serve D / H neighbouring channels. One fused multiply-add of all frames a tap: no window is copied.

    Args:
        x_BTD: Frames, shape (B, T, D).
        weights_BTHK: Weights of each frame and head, tap by tap from the earliest neighbour, their number odd.

    Returns:
        Shape (B, T, D).
    """
    num_frames = x_BTD.shape[1]
    heads, taps = weights_BTHK.shape[2:]
    reach = taps // 2
    padded_BTHC = functional.pad(x_BTD, (0, 0, reach, reach)).unflatten(-1, (heads, -1))
    mixed_BTHC = padded_BTHC[:, :num_frames] * weights_BTHK[..., :1]
    for tap in range(1, taps):
        neighbours_BTHC = padded_BTHC[:, tap : tap + num_frames]
        mixed_BTHC = torch.addcmul(mixed_BTHC, neighbours_BTHC, weights_BTHK[..., tap : tap + 1])
    return mixed_BTHC.flatten(2)
