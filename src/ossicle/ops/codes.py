"""Counting codes without making the host wait."""

import torch
from torch import Tensor

from ossicle.core.shapes import Float, Int64


def count_codes(codes: Int64[Tensor, "..."], num_codes: int) -> Float[Tensor, " V"]:
    """How often each code occurs, float32, shape (V,).

    torch.bincount reads the largest code on the host; this does not.

    Args:
        codes: Codes in [0, V), int64, any shape.
        num_codes: Codes there are (V).
    """
    flat = codes.reshape(-1)
    counts = torch.zeros(num_codes, device=codes.device)
    return counts.scatter_add(0, flat, torch.ones_like(flat, dtype=counts.dtype))


def count_groups(codes_PG: Int64[Tensor, "P G"], num_codes: int) -> Float[Tensor, "G V"]:
    """How often each code of each codebook occurs, float32.

    Args:
        codes_PG: A code of each codebook in [0, V), int64.
        num_codes: Codes of each codebook (V).
    """
    return torch.stack([count_codes(codes, num_codes) for codes in codes_PG.unbind(1)])
