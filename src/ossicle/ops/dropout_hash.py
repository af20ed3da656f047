"""Dropout decided by a hash of the place: nothing is stored for it, and whoever has the seed has it again."""

from typing import Final

import torch
from torch import Tensor

from ossicle.core.errors import ConfigError

WORD: Final = 2**32
_LOW: Final = WORD - 1
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97  # multipliers of a hash with little bias (github.com/skeeto/hash-prospector)


def threshold_of(dropout: float) -> int:
    """The hash below which a value is dropped.

    Raises:
        ConfigError: The probability is none below one.
    """
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout={dropout} is no probability below one", "it lies in [0, 1)")
    return round(dropout * WORD)


def draw_seed() -> Tensor:
    """A seed from torch's default generator of the CPU, int64, shape ()."""
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device="cpu")


def keep_mask(seed: Tensor, rows: int, columns: int, dropout: float) -> Tensor:
    """True where a value is kept, shape (rows, columns): what ``native.hpp`` computes, in plain torch.

    Args:
        seed: int64, shape ().
        rows: Rows, which are contiguous.
        columns: Columns.
        dropout: Probability with which a value is dropped.
    """
    low, high = seed & _LOW, (seed >> 32) & _LOW
    outer_R1 = _mix(torch.arange(rows, device=seed.device)[:, None] ^ low)
    inner_R1 = _mix(outer_R1 ^ high)
    x_RC = torch.arange(columns, device=seed.device)[None] ^ outer_R1
    x_RC = ((x_RC ^ (x_RC >> 16)) * _FIRST) & _LOW
    x_RC = ((x_RC ^ (x_RC >> 15) ^ inner_R1) * _SECOND) & _LOW
    return (x_RC ^ (x_RC >> 15)) >= threshold_of(dropout)


def _mix(x: Tensor) -> Tensor:
    """A hash of 32 bits in int64."""
    x = ((x ^ (x >> 16)) * _FIRST) & _LOW
    x = ((x ^ (x >> 15)) * _SECOND) & _LOW
    return x ^ (x >> 15)
