"""Frames that are foreseen from a context: the true one against others of the same row, or of all rows."""

import torch
from torch import Tensor

from ossicle.core.shapes import Float, Int64


def other_frames(
    rows: int, frames: int, *, num: int, generator: torch.Generator, across_rows: bool = False
) -> Int64[Tensor, "B T N"]:
    """For each frame of each row, other frames of that row or of all rows, drawn uniformly with replacement.

    Args:
        rows: Rows (B).
        frames: Frames of a row (T), at least 2.
        num: Draws of each frame (N).
        generator: Source of the draws; the indices lie on its device.
        across_rows: Whether frames of all rows are drawn from.

    Returns:
        Frames in [0, T), or in [0, B x T) row by row where all rows are drawn from; never a frame's own place, int64,
        shape (B, T, N).

    Raises:
        ValueError: A row has fewer than two frames.
    """
    if frames < 2:
        raise ValueError(f"{frames} frame(s) in a row leave no other to be a negative")
    among = rows * frames if across_rows else frames
    drawn = torch.randint(0, among - 1, (rows, frames, num), generator=generator, device=generator.device)
    own = torch.arange(among, device=drawn.device).view(-1, frames, 1)
    return drawn + (drawn >= own)


def foreseen_scores(
    predicted_BTKC: Float[Tensor, "B T steps C"],
    features_BTC: Float[Tensor, "B T C"],
    negatives_BTN: Int64[Tensor, "B T N"],
    *,
    across_rows: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Inner products of what each context predicts with the frame that comes, and with that frame's negatives.

    One matrix product a step gives all pairs of a row, or of all rows, of which the wanted ones are picked: no negative
    is laid out.

    Args:
        predicted_BTKC: Predictions of each context for 1, 2, ... frames ahead.
        features_BTC: The frames.
        negatives_BTN: Negatives of each frame that may come.
        across_rows: Whether negatives are counted through all rows.

    Returns:
        For each step k: scores of the true frame, shape (B, T - k), and of the negatives, shape (B, T - k, N). Steps
        beyond the row's end are left out.
    """
    frames = features_BTC.shape[1]
    right: list[Tensor] = []
    wrong: list[Tensor] = []
    with torch.autocast(features_BTC.device.type, enabled=False):
        others = features_BTC.float().flatten(0, 1).T if across_rows else features_BTC.float().transpose(1, 2)
        for step in range(1, min(predicted_BTKC.shape[2], frames - 1) + 1):
            pairs_BTU = predicted_BTKC[:, : frames - step, step - 1].float() @ others
            own_BTT = _of_own_row(pairs_BTU, frames) if across_rows else pairs_BTU
            right.append(own_BTT.diagonal(offset=step, dim1=1, dim2=2))
            wrong.append(pairs_BTU.gather(2, negatives_BTN[:, step:]))
    return right, wrong


def _of_own_row(pairs_BTU: Tensor, frames: int) -> Tensor:
    """The scores of each row's contexts with that row's frames, from those with the frames of all rows."""
    return pairs_BTU.unflatten(2, (-1, frames)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
