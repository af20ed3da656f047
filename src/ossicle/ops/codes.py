"""Counting codes without making the host wait."""

import torch
from torch import Tensor

from ossicle.core.shapes import Float, Int64


def count_codes(
    codes: Int64[Tensor, "..."], num_codes: int, weights: Float[Tensor, "..."] | None = None
) -> Float[Tensor, " V"]:
    """How often each code occurs, float32, shape (V,).

    torch.bincount reads the largest code on the host; this does not.

    Args:
        codes: Codes in [0, V), int64, any shape.
        num_codes: Codes there are (V).
        weights: What each counts, of the same shape; None for 1.
    """
    flat = codes.reshape(-1)
    counts = torch.zeros(num_codes, device=codes.device)
    each = torch.ones_like(flat, dtype=counts.dtype) if weights is None else weights.reshape(-1).to(counts.dtype)
    return counts.scatter_add(0, flat, each)


def count_groups(codes_PG: Int64[Tensor, "P G"], num_codes: int) -> Float[Tensor, "G V"]:
    """How often each code of each codebook occurs, float32, shape (G, V): one count for all codebooks.

    Args:
        codes_PG: A code of each codebook in [0, V), int64.
        num_codes: Codes of each codebook (V).
    """
    groups = codes_PG.shape[1]
    firsts_G = torch.arange(groups, device=codes_PG.device) * num_codes
    return count_codes(codes_PG + firsts_G, groups * num_codes).view(groups, num_codes)


def one_hot(codes: Int64[Tensor, "..."], like: Float[Tensor, "... V"]) -> Float[Tensor, "... V"]:
    """One-hot vectors of codes; torch.nn.functional.one_hot reads values on the host.

    Args:
        codes: Codes in [0, V), int64.
        like: Any tensor of the result's shape, type and device.
    """
    return torch.zeros_like(like).scatter(-1, codes.unsqueeze(-1), 1.0)
