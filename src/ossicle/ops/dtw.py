"""Dynamic time warping of many pairs at once, and the frame distances beneath it.

The distance of two stretches of frames as the ZeroSpeech challenges take it (Schatz 2016, "ABX-discriminability
measures and applications"; arXiv 1912.07875, section 4.1): the cost of the cheapest alignment that moves by one frame
in either or both, over the number of its steps.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ossicle.core.shapes import Float, Int

FrameDistance = Callable[[Tensor], Tensor]
"""From the cosines of pairs of frames to their distances."""

_BLOCK_VALUES = 2**23  # float32 values of one block of frames or of frame distances: 32 MiB


def angular(cosines: Float[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
    """The angle over pi, in [0, 1]: the frame distance of ZeroSpeech and of Libri-Light."""
    return cosines.clamp(-1, 1).acos() / math.pi


def cosine(cosines: Float[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
    """One less the cosine, in [0, 2]."""
    return 1 - cosines


def dtw(
    distances_BTU: Float[Tensor, "B T U"], first_B: Int[Tensor, " B"], second_B: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """The mean frame distance along each pair's cheapest alignment, shape (B,).

    An alignment starts at both first frames and ends at both last ones. Where steps cost the same, one in both is taken
    before one in the second, and that before one in the first: only the number of steps depends on it.

    Args:
        distances_BTU: Distances of frames, shape (B, T, U); what lies beyond a pair's lengths is not looked at.
        first_B: Frames of each first stretch, in [1, T], shape (B,).
        second_B: Frames of each second stretch, in [1, U], shape (B,).
    """
    rows, num_first, num_second = distances_BTU.shape
    device = distances_BTU.device
    # row t shifted right by t: column d holds the cells with t + u = d, which depend on the two columns before alone
    wide_BTE = torch.nn.functional.pad(distances_BTU, (0, num_first), value=math.inf)
    width = num_first + num_second - 1
    skewed_BTE = wide_BTE.reshape(rows, -1)[:, : num_first * width].reshape(rows, num_first, width)
    columns_EBT = skewed_BTE.permute(2, 0, 1).contiguous()
    last_B1 = (first_B - 1).to(device)[:, None]
    end_B = (first_B + second_B - 2).to(device)
    cost_BT = columns_EBT[0]
    steps_BT = torch.ones_like(cost_BT)
    before_BT, before_steps_BT = torch.full_like(cost_BT, math.inf), steps_BT
    found_B = cost_BT.gather(1, last_B1)[:, 0]
    for column in range(1, width):
        both_BT, up_BT = _shifted(before_BT, math.inf), _shifted(cost_BT, math.inf)
        cheapest_BT = torch.minimum(torch.minimum(both_BT, cost_BT), up_BT)
        taken_BT = torch.where(
            both_BT == cheapest_BT,
            _shifted(before_steps_BT, 0),
            torch.where(cost_BT == cheapest_BT, steps_BT, _shifted(steps_BT, 0)),
        )
        before_BT, before_steps_BT = cost_BT, steps_BT
        cost_BT, steps_BT = columns_EBT[column] + cheapest_BT, taken_BT + 1
        mean_B = (cost_BT.gather(1, last_B1) / steps_BT.gather(1, last_B1))[:, 0]
        found_B = torch.where(end_B == column, mean_B, found_B)
    return found_B


def stretch_distances(
    frames_PD: Float[Tensor, "P D"],
    starts_N: NDArray[np.int64],
    lengths_N: NDArray[np.int64],
    pairs_B2: NDArray[np.int64],
    frame_distance: FrameDistance = angular,
) -> NDArray[np.float64]:
    """The distances of pairs of stretches of packed frames, in blocks of bounded memory, shape (B,).

    Args:
        frames_PD: Frames of many utterances end to end, shape (P, D).
        starts_N: First frame of each stretch, shape (N,).
        lengths_N: Frames of each stretch, one or more, shape (N,).
        pairs_B2: Pairs of stretches, shape (B, 2).
        frame_distance: :func:`angular` or :func:`cosine`.
    """
    unit_PD = torch.nn.functional.normalize(frames_PD, dim=1)
    found_B = np.empty(len(pairs_B2))
    shapes_B2 = lengths_N[pairs_B2]
    order_B = np.lexsort((shapes_B2[:, 1], shapes_B2[:, 0]))  # blocks of like shapes, so that little is padding
    first = 0
    while first < len(order_B):
        some = order_B[first : first + _block_rows(shapes_B2[order_B[first:]], frames_PD.shape[1])]
        first += len(some)
        longest = shapes_B2[some].max(0)
        cut = [
            unit_PD[
                torch.from_numpy(_places(starts_N, lengths_N, pairs_B2[some, side], int(longest[side]))).to(
                    unit_PD.device
                )
            ]
            for side in (0, 1)
        ]
        sizes = torch.from_numpy(shapes_B2[some])
        mean_B = dtw(frame_distance(cut[0] @ cut[1].mT), sizes[:, 0], sizes[:, 1])
        found_B[some] = mean_B.double().cpu().numpy()
    return found_B


def _shifted(x_BT: Tensor, fill: float) -> Tensor:
    """Each row moved by one to the right."""
    return torch.nn.functional.pad(x_BT[:, :-1], (1, 0), value=fill)


def _places(
    starts_N: NDArray[np.int64], lengths_N: NDArray[np.int64], chosen_B: NDArray[np.int64], longest: int
) -> NDArray[np.int64]:
    """Frames of stretches, the last one repeated up to the longest, shape (B, longest)."""
    steps_BT = np.minimum(np.arange(longest), lengths_N[chosen_B, None] - 1)
    return starts_N[chosen_B, None] + steps_BT


def _block_rows(shapes_B2: NDArray[np.int64], dim: int) -> int:
    """How many pairs of the given shapes, the first ones, fit into a block."""
    first, second = shapes_B2[: _BLOCK_VALUES // 8].T
    tallest, widest = np.maximum.accumulate(first), np.maximum.accumulate(second)
    values = np.maximum(tallest * (tallest + widest), np.maximum(tallest, widest) * dim) * np.arange(1, len(first) + 1)
    return max(1, int(np.searchsorted(values, _BLOCK_VALUES, side="right")))
