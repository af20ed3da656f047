"""Negatives of a contrastive loss: other masked frames of the same utterance."""

import torch
from torch import Tensor

from ossicle.core.shapes import Int64


def sample_negatives(rows: int, masked: int, *, num: int, generator: torch.Generator) -> Int64[Tensor, "B M N"]:
    """Draw negatives uniformly from a row's other masked frames, with replacement (arXiv 2006.11477, section 3.2).

    Args:
        rows: Rows (B).
        masked: Masked frames of a row (M), at least 2.
        num: Negatives of each masked frame (N).
        generator: Source of the draws; the indices lie on its device.

    Returns:
        Places among the row's masked frames, in [0, M), int64, shape (B, M, N): never a frame's own place.

    Raises:
        ValueError: A row has fewer than two masked frames, so there is no other.
    """
    if masked < 2:
        raise ValueError(f"{masked} masked frame(s) in a row leave no other to be a negative")
    drawn = torch.randint(0, masked - 1, (rows, masked, num), generator=generator, device=generator.device)
    own_M1 = torch.arange(masked, device=drawn.device).unsqueeze(1)
    return drawn + (drawn >= own_M1)  # skipping one's own place keeps the others equally likely
