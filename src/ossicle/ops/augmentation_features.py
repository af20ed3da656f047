"""Random spans of frames or bands, as SpecAugment hides them (arXiv 1904.08779, section 2)."""

import math

import torch
from torch import Tensor

from ossicle.core.shapes import Bool


def random_spans(
    rows: int,
    size: int,
    *,
    num: float,
    longest: int,
    fixed: bool = False,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "B size"]:
    """True where one of a row's spans lies. A span's length is uniform in 0..longest, its start in 0..size - length.

    Where lengths are fixed every span has the longest.

    Args:
        rows: Rows (B).
        size: Frames or bands of a row.
        num: Spans of each row; they may overlap. A fraction beyond a whole number is the probability with which a row
            has one more (SPIRAL's rounding, arXiv 2201.10207, in its authors' code).
        longest: Length that a span has at most; never more than ``size``.
        fixed: Whether all spans are as long as that.
        device: Where the result lies.
        generator: Source of the draws, or None for the device's default one.

    Returns:
        Shape (B, size).
    """
    longest = min(longest, size)
    most = math.ceil(num)
    draws_2BN = torch.rand(2, rows, most, device=device, generator=generator)
    lengths_BN = torch.full_like(draws_2BN[0], longest) if fixed else draws_2BN[0] * (longest + 1)
    lengths_BN = lengths_BN.long()
    if most > num:
        more_B1 = torch.rand(rows, 1, device=device, generator=generator) < num - math.floor(num)
        lengths_BN = torch.where(more_B1 | (torch.arange(most, device=device) < most - 1), lengths_BN, 0)
    starts_BN = (draws_2BN[1] * (size - lengths_BN + 1)).long()
    places = torch.arange(size, device=device)
    since_BNT = places - starts_BN[:, :, None]
    return ((since_BNT >= 0) & (since_BNT < lengths_BN[:, :, None])).any(1)
