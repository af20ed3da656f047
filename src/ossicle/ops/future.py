"""Frames that are foreseen from a context: the true one against others of the same row."""

import torch
from torch import Tensor

from ossicle.core.shapes import Float, Int64


def other_frames(rows: int, frames: int, *, num: int, generator: torch.Generator) -> Int64[Tensor, "B T N"]:
    """For each frame of each row, other frames of that row, drawn uniformly with replacement.

    Args:
        rows: Rows (B).
        frames: Frames of a row (T), at least 2.
        num: Draws of each frame (N).
        generator: Source of the draws; the indices lie on its device.

    Returns:
        Frames in [0, T), never a frame's own place, int64, shape (B, T, N).

    Raises:
        ValueError: A row has fewer than two frames.
    """
    if frames < 2:
        raise ValueError(f"{frames} frame(s) in a row leave no other to be a negative")
    drawn = torch.randint(0, frames - 1, (rows, frames, num), generator=generator, device=generator.device)
    own_T1 = torch.arange(frames, device=drawn.device).unsqueeze(1)
    return drawn + (drawn >= own_T1)


def foreseen_scores(
    predicted_BTKC: Float[Tensor, "B T steps C"],
    features_BTC: Float[Tensor, "B T C"],
    negatives_BTN: Int64[Tensor, "B T N"],
) -> tuple[list[Tensor], list[Tensor]]:
    """Inner products of what each context predicts with the frame that comes, and with that frame's negatives.

    One matrix product a step gives all pairs of a row, of which the wanted ones are picked: no negative is laid out.

    Args:
        predicted_BTKC: Predictions of each context for 1, 2, ... frames ahead.
        features_BTC: The frames.
        negatives_BTN: Negatives of each frame that may come.

    Returns:
        For each step k: scores of the true frame, shape (B, T - k), and of the negatives, shape (B, T - k, N). Steps
        beyond the row's end are left out.
    """
    frames = features_BTC.shape[1]
    right: list[Tensor] = []
    wrong: list[Tensor] = []
    with torch.autocast(features_BTC.device.type, enabled=False):
        features_BCT = features_BTC.float().transpose(1, 2)
        for step in range(1, min(predicted_BTKC.shape[2], frames - 1) + 1):
            pairs_BTT = predicted_BTKC[:, : frames - step, step - 1].float() @ features_BCT
            right.append(pairs_BTT.diagonal(offset=step, dim1=1, dim2=2))
            wrong.append(pairs_BTT.gather(2, negatives_BTN[:, step:]))
    return right, wrong
