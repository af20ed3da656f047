"""Attention to columns: the frames that stand a multiple of a stride away (arXiv 1904.10509, section 4.3)."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.core.shapes import Bool, Float
from ossicle.ops.blocked_attention import near, neighbours


def attend_columns(
    q_BTHK: Float[Tensor, "B T H K"],
    k_BTHK: Float[Tensor, "B T H K"],
    v_BTHK: Float[Tensor, "B T H K"],
    stride: int,
    *,
    valid_BT: Bool[Tensor, "B T"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B T H K"]:
    """Softmax attention of each frame to those a multiple of ``stride`` away, in both directions.

    Frames of one remainder are one short row of attention: T / stride scores a frame.

    Args:
        q_BTHK: Queries, shape (B, T, H, K).
        k_BTHK: Keys, same shape.
        v_BTHK: Values, same shape.
        stride: Frames between those that see each other.
        valid_BT: True where a frame is real, or None where every frame is.
        dropout: Probability with which an attention weight is dropped; 0 outside training.
    """
    rows, frames = q_BTHK.shape[:2]
    q_NHCK, k_NHCK, v_NHCK = (_columns(x, stride) for x in (q_BTHK, k_BTHK, v_BTHK))
    seen = None
    if valid_BT is not None or frames % stride:
        real_N1C = _real_columns(rows, frames, stride, valid_BT, q_BTHK.device)[:, None]
        # A column without a real frame would divide by zero: it sees its first.
        first_C = torch.arange(real_N1C.shape[-1], device=q_BTHK.device) == 0
        seen = (real_N1C | (first_C & ~real_N1C.any(-1, keepdim=True)))[:, None]
    mixed_NHCK = functional.scaled_dot_product_attention(q_NHCK, k_NHCK, v_NHCK, seen, dropout)
    return _rows(mixed_NHCK, rows, frames)


def attend_merged(
    q_BTHK: Float[Tensor, "B T H K"],
    k_BTHK: Float[Tensor, "B T H K"],
    v_BTHK: Float[Tensor, "B T H K"],
    stride: int,
    *,
    valid_BT: Bool[Tensor, "B T"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B T H K"]:
    """One softmax over the frames within ``stride`` and those a multiple of it away: the merged head of section 5.1.

    Scores are written out, 3 x stride + T / stride of them a frame.

    Args:
        q_BTHK: Queries, shape (B, T, H, K).
        k_BTHK: Keys, same shape.
        v_BTHK: Values, same shape.
        stride: Frames to each side that are seen, and frames between the others.
        valid_BT: True where a frame is real, or None where every frame is.
        dropout: Probability with which an attention weight is dropped; 0 outside training.
    """
    rows, frames, heads, width = q_BTHK.shape
    ends = (0, 0, 0, 0, 0, -frames % stride)
    q_BTHK, k_BTHK, v_BTHK = (functional.pad(x, ends) for x in (q_BTHK / math.sqrt(width), k_BTHK, v_BTHK))
    blocks = q_BTHK.shape[1] // stride
    device = q_BTHK.device
    # near keys: blocks of `stride` queries with their three blocks of keys
    q_NHQK = q_BTHK.reshape(rows * blocks, stride, heads, width).transpose(1, 2)
    seen_BNQE = near(frames, stride, stride, valid_BT, device=device).expand(rows, -1, -1, -1)
    scores_NHQE = _scores(q_NHQK, neighbours(k_BTHK, stride), seen_BNQE.flatten(0, 1))
    # far keys: columns without what is near
    place_C = torch.arange(blocks, device=device)
    far_CC = (place_C[:, None] - place_C).abs() > 1
    real_NC = _real_columns(rows, frames, stride, valid_BT, device)
    scores_MHCC = _scores(_columns(q_BTHK, stride), _columns(k_BTHK, stride), far_CC & real_NC[:, None])
    # both by frame, (B, blocks, stride, H, keys), under one softmax
    near_scores = scores_NHQE.unflatten(0, (rows, blocks)).transpose(2, 3)
    far_scores = scores_MHCC.unflatten(0, (rows, stride)).permute(0, 3, 1, 2, 4)
    weights = torch.cat([near_scores, far_scores], -1).softmax(-1).to(v_BTHK.dtype)
    weights = functional.dropout(weights, dropout)
    near_weights, far_weights = weights.split([3 * stride, blocks], -1)
    near_NHQK = near_weights.transpose(2, 3).flatten(0, 1) @ neighbours(v_BTHK, stride)
    far_MHCK = far_weights.permute(0, 2, 3, 1, 4).flatten(0, 1) @ _columns(v_BTHK, stride)
    mixed_BTHK = near_NHQK.transpose(1, 2).reshape(rows, blocks * stride, heads, width)
    return mixed_BTHK[:, :frames] + _rows(far_MHCK, rows, frames)


def _scores(q_NHQK: Tensor, k_NHEK: Tensor, seen_NQE: Tensor) -> Tensor:
    """Products, rounded as their factors, in float32 at least; the lowest finite number where a key is not seen."""
    scores_NHQE = (q_NHQK @ k_NHEK.mT).to(torch.promote_types(q_NHQK.dtype, torch.float32))
    return scores_NHQE.masked_fill(~seen_NQE[:, None], torch.finfo(scores_NHQE.dtype).min)


def _columns(x_BTHK: Tensor, stride: int) -> Tensor:
    """Frames of each remainder as a row, (B * stride, H, ceil(T / stride), K)."""
    padded = functional.pad(x_BTHK, (0, 0, 0, 0, 0, -x_BTHK.shape[1] % stride))
    return padded.unflatten(1, (-1, stride)).permute(0, 2, 3, 1, 4).flatten(0, 1)


def _rows(x_NHCK: Tensor, rows: int, frames: int) -> Tensor:
    """Columns back in order of time, (B, T, H, K)."""
    return x_NHCK.unflatten(0, (rows, -1)).permute(0, 3, 1, 2, 4).flatten(1, 2)[:, :frames]


def _real_columns(rows: int, frames: int, stride: int, valid_BT: Tensor | None, device: torch.device) -> Tensor:
    """True at the real frames of each column, (B * stride, ceil(T / stride))."""
    real_BT = torch.ones(rows, frames, dtype=torch.bool, device=device) if valid_BT is None else valid_BT
    return functional.pad(real_BT, (0, -frames % stride)).unflatten(1, (-1, stride)).transpose(1, 2).flatten(0, 1)
