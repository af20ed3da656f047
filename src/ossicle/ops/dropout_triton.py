"""Dropout inside of Triton kernels, decided by the hash of ``ossicle.ops.dropout_hash``: the way back draws it again.

Philox's ten rounds a value would take longer than reading and writing it.
"""

import triton
import triton.language as tl

from ossicle.ops.dropout_hash import WORD, threshold_of


def drops(dropout: float) -> dict[str, float | int | bool]:
    """The signed word below which a hash drops a value, what is left is multiplied with, and whether any drops."""
    return {"threshold": threshold_of(dropout) - WORD // 2, "gain": 1 / (1 - dropout), "DROPS": dropout > 0}


@triton.jit
def kept(  # noqa: PLR0917
    values: tl.tensor,
    seeds: tl.tensor,
    place: tl.tensor,
    threshold: tl.tensor,
    gain: tl.tensor,
    DROPS: tl.constexpr,
) -> tl.tensor:
    """What dropout leaves: ``dropout_hash.keep_places`` of where the values lie."""
    if DROPS:
        first = tl.load(seeds).to(tl.uint32, bitcast=True)
        second = tl.load(seeds + 1).to(tl.uint32, bitcast=True)
        x = place.to(tl.uint32) ^ first
        x = (x ^ (x >> 16)) * 0x21F0AAAD
        x = (x ^ (x >> 15) ^ second) * 0x735A2D97
        x = x ^ (x >> 15)
        values = tl.where(x.to(tl.int32, bitcast=True) >= threshold, values * gain, 0.0)
    return values
