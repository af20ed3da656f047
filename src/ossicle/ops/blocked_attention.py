"""Attention within a window, by blocks: time and memory grow with T, never with its square."""

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.core.shapes import Bool, Float, Int
from ossicle.ops.packing import rows_and_places

MIN_BLOCK = 32
"""Queries of a block at least: smaller products leave the machine idle."""


def attend_blocked(
    q_BTHK: Float[Tensor, "B T H K"],
    k_BTHK: Float[Tensor, "B T H K"],
    v_BTHK: Float[Tensor, "B T H K"],
    window: int,
    *,
    segment_BT: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
    dropout: float = 0.0,
    num_global: int = 0,
) -> Float[Tensor, "B T H K"]:
    """Softmax attention to the frames within a window: each block of queries sees its own block and both neighbours.

    Args:
        q_BTHK: Queries, shape (B, T, H, K).
        k_BTHK: Keys, same shape.
        v_BTHK: Values, same shape.
        window: Frames to each side that a frame attends to.
        segment_BT: A frame sees those of its own segment alone; 0 (or False) is no segment, and such a frame sees
            itself alone. None where all frames of a row are one.
        dropout: Probability with which an attention weight is dropped; 0 outside training.
        num_global: First frames of each row that every frame sees besides; a row is one segment then.
    """
    rows, frames, heads, width = q_BTHK.shape
    length = min(max(window, MIN_BLOCK), frames)
    blocks = -(-frames // length)
    ends = (0, 0, 0, 0, 0, blocks * length - frames)
    q_NHQK = functional.pad(q_BTHK, ends).reshape(rows * blocks, length, heads, width).transpose(1, 2)
    k_NHEK, v_NHEK = (neighbours(functional.pad(x, ends), length) for x in (k_BTHK, v_BTHK))
    # Global keys come by another way: windows hide them, so that none counts twice.
    seen_BNQE = near(frames, length, window, segment_BT, device=q_BTHK.device, hidden=num_global)
    if num_global:
        count = min(num_global, frames)
        k_NHEK, v_NHEK = (
            torch.cat([near, x[:, :count].transpose(1, 2).repeat_interleave(blocks, 0)], 2)
            for near, x in ((k_NHEK, k_BTHK), (v_NHEK, v_BTHK))
        )
        seen_BNQE = torch.cat([seen_BNQE, _first(seen_BNQE, segment_BT, count)], -1)
    seen_N1QE = seen_BNQE.expand(rows, -1, -1, -1).flatten(0, 1)[:, None]
    mixed_NHQK = functional.scaled_dot_product_attention(q_NHQK, k_NHEK, v_NHEK, seen_N1QE, dropout)
    return mixed_NHQK.transpose(1, 2).reshape(rows, blocks * length, heads, width)[:, :frames]


def segments(cu_seqlens: Int[Tensor, " edges"], num_frames: int) -> Int[Tensor, "1 P"]:
    """Which utterance, from 1 on, a packed frame belongs to: cumulative counts of frames to (1, P)."""
    return rows_and_places(cu_seqlens, num_frames)[0][None] + 1


def neighbours(x_BTHK: Float[Tensor, "B T H K"], length: int) -> Float[Tensor, "N H E K"]:
    """Each block with the one before and the one after, zeros past the ends.

    Args:
        x_BTHK: Keys or values; T is a multiple of ``length``.
        length: Frames of a block.

    Returns:
        Shape (B x blocks, H, 3 x length, K).
    """
    padded = functional.pad(x_BTHK, (0, 0, 0, 0, length, length))
    return padded.unfold(1, 3 * length, length).flatten(0, 1).transpose(2, 3)


def near(
    frames: int,
    length: int,
    window: int,
    segment_BT: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None,
    *,
    device: torch.device,
    hidden: int = 0,
) -> Bool[Tensor, "B N Q E"]:
    """Which keys of its own block and both neighbours a query sees.

    Args:
        frames: Frames of a row (T).
        length: Frames of a block.
        window: Frames to each side that a frame sees, not more than ``length``.
        segment_BT: As in :func:`attend_blocked`.
        device: Of the result.
        hidden: First frames of a row that no window shows.

    Returns:
        Shape (B or 1, blocks, length, 3 x length). What is no frame sees itself.
    """
    blocks = -(-frames // length)
    inside_Q = torch.arange(length, device=device)
    inside_E = torch.arange(-length, 2 * length, device=device)
    starts_N = torch.arange(0, blocks * length, length, device=device)
    apart_QE = inside_E - inside_Q[:, None]
    key_NE = starts_N[:, None] + inside_E
    there_NE = (key_NE >= hidden) & (key_NE < frames)
    seen_BNQE = ((apart_QE.abs() <= window) & there_NE[:, None, :])[None]
    if segment_BT is not None:
        padded_BT = functional.pad(segment_BT.long(), (0, blocks * length - frames))
        query_BNQ = padded_BT.unflatten(1, (blocks, length))
        key_BNE = functional.pad(padded_BT, (length, length)).unfold(1, 3 * length, length)
        mine_BNQE = (query_BNQ[..., None] == key_BNE[..., None, :]) & (key_BNE > 0)[..., None, :]
        seen_BNQE = seen_BNQE & mine_BNQE
    # A query that sees nothing would divide by zero: what is no frame sees itself.
    unreal_BNQ1 = _unreal(frames, blocks, length, segment_BT, device)
    return seen_BNQE | (unreal_BNQ1 & (apart_QE == 0))


def _unreal(frames: int, blocks: int, length: int, segment_BT: Tensor | None, device: torch.device) -> Tensor:
    """True at queries that are no real frame, (B or 1, blocks, length, 1)."""
    if segment_BT is None:
        real_BT = (torch.arange(blocks * length, device=device) < frames)[None]
    else:
        real_BT = functional.pad(segment_BT.long(), (0, blocks * length - frames)) > 0
    return ~real_BT.unflatten(1, (blocks, length))[..., None]


def _first(seen_BNQE: Tensor, segment_BT: Tensor | None, count: int) -> Tensor:
    """Which of a row's first frames a query sees: all real ones, (B or 1, blocks, length, count)."""
    shape = (*seen_BNQE.shape[:3], count)
    if segment_BT is None:
        return seen_BNQE.new_ones(()).expand(shape)
    return (segment_BT[:, None, None, :count] > 0).expand(shape)
