"""Means of frames in linear time: over a row, up to the end of each frame's chunk, or fading with distance."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.core.shapes import Bool, Float
from ossicle.ops.precision import without_autocast

BLOCK: Final = 64
"""Frames that one product of matrices sums; sums of blocks are summed in the same way."""


def mean_summary(
    x_BTD: Float[Tensor, "B T D"],
    valid_BT: Bool[Tensor, "B T"] | None = None,
    *,
    chunk: int | None = None,
    left_chunks: int | None = None,
) -> Float[Tensor, "B T D"]:
    """The mean of a row's real frames, for each frame.

    Args:
        x_BTD: Frames, shape (B, T, D).
        valid_BT: True where a frame is real, or None where every frame is.
        chunk: Frames of a chunk: a frame's mean then ends with its chunk. None: with the row.
        left_chunks: Chunks before a frame's own that its mean takes in; None for all of them.

    Returns:
        Means in float32 at least, shape (B, T, D), or (B, 1, D) where all frames of a row have the same.
    """
    if chunk is None:
        return _mean_of_rows(x_BTD, valid_BT)
    x_BTD, weights_BT1 = _weighed(x_BTD, valid_BT)
    num_frames = x_BTD.shape[1]
    sums_BND = _sums_of_chunks(x_BTD, chunk, left_chunks)
    counts_BN1 = _sums_of_chunks(weights_BT1, chunk, left_chunks)
    means_BND = sums_BND / counts_BN1.clamp(min=1)
    return means_BND.repeat_interleave(chunk, 1)[:, :num_frames]


def decaying_summary(
    x_BTD: Float[Tensor, "B T D"],
    decay: float,
    valid_BT: Bool[Tensor, "B T"] | None = None,
    *,
    chunk: int | None = None,
) -> Float[Tensor, "B T D"]:
    """The mean of a row's real frames, weighed by ``decay`` to the power of their distance on both sides.

    Args:
        x_BTD: Frames, shape (B, T, D).
        decay: Weight of a frame beside another's, between 0 and 1.
        valid_BT: True where a frame is real, or None where every frame is.
        chunk: Frames of a chunk, with which a frame's mean ends; None: with the row.

    Returns:
        Means in float32 at least, shape (B, T, D).
    """
    x_BTD, weights_BT1 = _weighed(x_BTD, valid_BT)
    both_BTE = torch.cat([x_BTD, weights_BT1.expand(len(x_BTD), -1, -1)], -1)
    rows_RTE = both_BTE
    num_frames = x_BTD.shape[1]
    if chunk is not None:
        rows_RTE = functional.pad(both_BTE, (0, 0, 0, -num_frames % chunk)).unflatten(1, (-1, chunk)).flatten(0, 1)
    behind_BTE = decaying_sum(rows_RTE.flip(1), decay).flip(1) - rows_RTE
    if chunk is not None:
        behind_BTE = behind_BTE.unflatten(0, (len(x_BTD), -1)).flatten(1, 2)[:, :num_frames]
    sums_BTE = decaying_sum(both_BTE, decay) + behind_BTE
    # Behind a row's real frames the weights may fade to nothing.
    return sums_BTE[..., :-1] / sums_BTE[..., -1:].clamp(min=torch.finfo(sums_BTE.dtype).tiny)


def decaying_sum(x_BTD: Float[Tensor, "B T D"], decay: float) -> Float[Tensor, "B T D"]:
    """y_t = x_t + decay y_{t-1}, by products of matrices over blocks, and over sums of blocks.

    Args:
        x_BTD: Frames, shape (B, T, D).
        decay: From 0 to 1; that of whole blocks may be too small for a float.
    """
    num_frames = x_BTD.shape[1]
    block = min(BLOCK, num_frames)
    places = torch.arange(block, device=x_BTD.device)
    distances = places[:, None] - places
    weights = torch.pow(decay, distances.clamp(min=0).to(torch.float64)).tril().to(x_BTD.dtype)
    if num_frames == block:
        with without_autocast(x_BTD):
            return weights @ x_BTD
    blocks_BNCD = functional.pad(x_BTD, (0, 0, 0, -num_frames % block)).unflatten(1, (-1, block))
    with without_autocast(x_BTD):
        within_BNCD = weights @ blocks_BNCD
    ends_BND = decaying_sum(within_BNCD[:, :-1, -1], decay**block)
    fading_C1 = torch.pow(decay, (places + 1).to(torch.float64)).to(x_BTD.dtype)[:, None]
    carried_BND = functional.pad(ends_BND, (0, 0, 1, 0))
    return (within_BNCD + fading_C1 * carried_BND[:, :, None]).flatten(1, 2)[:, :num_frames]


def _mean_of_rows(x_BTD: Tensor, valid_BT: Tensor | None) -> Tensor:
    """The mean of each row, (B, 1, D): summed in float32 at least, without a copy of that type."""
    dtype = torch.promote_types(x_BTD.dtype, torch.float32)
    if valid_BT is None:
        return x_BTD.sum(1, keepdim=True, dtype=dtype) / max(1, x_BTD.shape[1])
    sum_B1D = x_BTD.masked_fill(~valid_BT[..., None], 0).sum(1, keepdim=True, dtype=dtype)
    return sum_B1D / valid_BT.sum(1)[:, None, None].clamp(min=1)


def _weighed(x_BTD: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """Frames in float32 at least, zero where none is, and the weight of each, shape (B or 1, T, 1)."""
    x_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
    if valid_BT is None:
        return x_BTD, x_BTD.new_ones(1, x_BTD.shape[1], 1)
    return x_BTD.masked_fill(~valid_BT[..., None], 0), valid_BT[..., None].to(x_BTD.dtype)


def _sums_of_chunks(x_BTD: Tensor, chunk: int, left_chunks: int | None) -> Tensor:
    """For each chunk the sum of its frames and of those of the chunks before it, shape (B, N, D)."""
    padded_BTD = functional.pad(x_BTD, (0, 0, 0, -x_BTD.shape[1] % chunk))
    sums_BND = padded_BTD.unflatten(1, (-1, chunk)).sum(2)
    if left_chunks is None or left_chunks + 1 >= sums_BND.shape[1]:
        return sums_BND.cumsum(1)
    # summed anew for each: the difference of two running sums loses digits as a row grows
    return functional.pad(sums_BND, (0, 0, left_chunks, 0)).unfold(1, left_chunks + 1, 1).sum(-1)
