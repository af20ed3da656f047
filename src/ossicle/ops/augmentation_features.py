"""Random spans of frames or bands, as SpecAugment hides them (arXiv 1904.08779, section 2)."""

import torch
from torch import Tensor

from ossicle.core.shapes import Bool


def random_spans(
    rows: int,
    size: int,
    *,
    num: int,
    longest: int,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "B size"]:
    """True where one of a row's spans lies. A span's length is uniform in 0..longest, its start in 0..size - length.

    Args:
        rows: Rows (B).
        size: Frames or bands of a row.
        num: Spans of each row; they may overlap.
        longest: Length that a span has at most; never more than ``size``.
        device: Where the result lies.
        generator: Source of the draws, or None for the device's default one.

    Returns:
        Shape (B, size).
    """
    longest = min(longest, size)
    draws_2BN = torch.rand(2, rows, num, device=device, generator=generator)
    lengths_BN = (draws_2BN[0] * (longest + 1)).long()
    starts_BN = (draws_2BN[1] * (size - lengths_BN + 1)).long()
    places = torch.arange(size, device=device)
    since_BNT = places - starts_BN[:, :, None]
    return ((since_BNT >= 0) & (since_BNT < lengths_BN[:, :, None])).any(1)
