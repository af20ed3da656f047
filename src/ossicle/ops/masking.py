"""Span masks with a fixed number of frames a row, as integer indices: every shape is known to the host beforehand."""

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.core.shapes import Bool, Float, Int64


def num_masked(frames: int, *, start_probability: float, length: int) -> int:
    """Frames that spans cover on average, away from the edges, and that every row masks exactly (M).

    Each frame starts a span with probability p, so a frame escapes with (1 - p)^length: 0.49 of the frames are masked
    for wav2vec 2.0 (p = 0.065, arXiv 2006.11477, section 3.1) and 0.57 for HuBERT (p = 0.08).

    Args:
        frames: Frames of a row (T), at least 1.
        start_probability: Probability that a frame starts a span, in (0, 1].
        length: Frames of a span, at least 1.

    Returns:
        M, between 1 and T.

    Raises:
        ValueError: An argument is out of its range.
    """
    if frames < 1 or length < 1 or not 0 < start_probability <= 1:
        raise ValueError(f"cannot mask {frames} frames with spans of {length} at probability {start_probability}")
    return max(1, round(frames * (1 - (1 - start_probability) ** length)))


def mask_indices(
    rows: int, frames: int, *, start_probability: float, length: int, generator: torch.Generator
) -> Int64[Tensor, "B M"]:
    """Draw masked frames as a union of random spans that may overlap, cut to exactly M frames in every row.

    Every possible start of a span draws a random key, a frame's key is the least of the spans that cover it, and the
    M least keys are masked: spans enter whole, in random order, until M frames are covered; the last may be cut. No
    shape depends on what was drawn, so the device never makes the host wait.

    Args:
        rows: Rows (B).
        frames: Frames of a row (T), at least 1.
        start_probability: Probability that a frame starts a span; sets M by :func:`num_masked`.
        length: Frames of a span; spans are never longer than M.
        generator: Source of the keys; the indices lie on its device.

    Returns:
        Masked frames of each row in rising order, int64, shape (B, M).
    """
    masked = num_masked(frames, start_probability=start_probability, length=length)
    span = min(length, masked)  # a longer one would always be cut, and always at the same side
    keys = torch.rand(rows, frames - span + 1, generator=generator, device=generator.device)
    padded = functional.pad(-keys, (span - 1, span - 1), value=-2.0)  # keys lie in (-1, 0]: no start beyond the edges
    frame_keys_BT = -functional.max_pool1d(padded.unsqueeze(1), span, stride=1).squeeze(1)
    order_BT = frame_keys_BT.argsort(dim=1, stable=True)
    return order_BT[:, :masked].sort(dim=1).values


def masked_flags(masked_BM: Int64[Tensor, "B M"], frames: int) -> Bool[Tensor, "B T"]:
    """True where a frame is masked, shape (B, T)."""
    flags = torch.zeros(masked_BM.shape[0], frames, dtype=torch.bool, device=masked_BM.device)
    return flags.scatter(1, masked_BM, value=True)


def unmasked_indices(masked_BM: Int64[Tensor, "B M"], frames: int) -> Int64[Tensor, "B _"]:
    """The frames that are not masked, in rising order, int64, shape (B, T - M)."""
    order = masked_flags(masked_BM, frames).to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : frames - masked_BM.shape[1]]


def gather_frames(x_BTD: Float[Tensor, "B T D"], frames_BM: Int64[Tensor, "B M"]) -> Float[Tensor, "B M D"]:
    """Some frames of each row, shape (B, M, D): whole vectors are read, not one element at a time."""
    rows, frames, dim = x_BTD.shape
    offsets = torch.arange(rows, device=x_BTD.device).unsqueeze(1) * frames
    flat = (frames_BM + offsets).reshape(-1)
    return x_BTD.reshape(rows * frames, dim).index_select(0, flat).reshape(rows, -1, dim)
