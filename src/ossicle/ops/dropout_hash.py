"""Dropout decided by a hash of the place: nothing is stored for it, and whoever has the seed has it again."""

from typing import Final

import torch
from torch import Tensor

from ossicle.core.errors import ConfigError

WORD: Final = 2**32
PLACES: Final = WORD // 2
"""Values that :func:`keep_places` can tell apart."""
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


def draw_seeds(device: torch.device) -> Tensor:
    """Two words from torch's default generator of a device, int32, shape (2,)."""
    seeds_2 = torch.randint(-WORD // 2, WORD // 2, (2,), dtype=torch.int32, device=device)
    return _held(seeds_2) if torch.compiler.is_compiling() else seeds_2


def keep_places(seeds_2: Tensor, places: int, dropout: float) -> Tensor:
    """True where a value is kept, by its place among all, shape (places,), in 32-bit words alone.

    Args:
        seeds_2: int32, shape (2,): the second goes between the hash's two rounds, so that no two draws are one
            draw's values in another order.
        places: Number of values, below :data:`PLACES`.
        dropout: Probability with which a value is dropped.
    """
    x_P = torch.arange(places, dtype=torch.int32, device=seeds_2.device) ^ seeds_2[0]
    x_P = (x_P ^ ((x_P >> 16) & 0xFFFF)) * _FIRST  # a shift of int32 brings its sign along
    x_P = (x_P ^ ((x_P >> 15) & 0x1FFFF) ^ seeds_2[1]) * _SECOND
    x_P = x_P ^ ((x_P >> 15) & 0x1FFFF)
    return x_P >= threshold_of(dropout) - WORD // 2


@torch.library.custom_op("ossicle::held", mutates_args=())
def _held(x: Tensor) -> Tensor:
    """A copy that a compiler does not look into: it would draw a seed again at every place that asks for it."""
    return x.clone()


@_held.register_fake
def _held_shape(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _mix(x: Tensor) -> Tensor:
    """A hash of 32 bits in int64."""
    x = ((x ^ (x >> 16)) * _FIRST) & _LOW
    x = ((x ^ (x >> 15)) * _SECOND) & _LOW
    return x ^ (x >> 15)
