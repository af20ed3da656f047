# ty: ignore[invalid-argument-type]  kernels are compiled from their text, for which types are those on the device
"""What the kernels of attention with biases by distance do with a tile of queries by keys."""

import math
from typing import Final

import triton
import triton.language as tl

from ossicle.ops.dropout_triton import kept

_LOG2_E: Final = tl.constexpr(1 / math.log(2))
_NEVER: Final = tl.constexpr(-1e30)
"""The score of a key that is padding: finite, so that a row without any real key stays finite."""


@triton.jit
def load_tile(  # noqa: PLR0917
    x: tl.tensor,
    row: tl.tensor,
    head: tl.tensor,
    t: tl.tensor,
    heads: tl.tensor,
    frames: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """One head of some frames, from (B, T, H, K): (frames, K) with zeros around."""
    c = tl.arange(0, BLOCK_K)
    place = ((row * frames + t) * heads + head)[:, None] * WIDTH + c[None, :]
    return tl.load(x + place, mask=(t < frames)[:, None] & (c < WIDTH)[None, :], other=0.0)


@triton.jit
def store_tile(  # noqa: PLR0917
    x: tl.tensor,
    values: tl.tensor,
    row: tl.tensor,
    head: tl.tensor,
    t: tl.tensor,
    heads: tl.tensor,
    frames: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """The other way round."""
    c = tl.arange(0, BLOCK_K)
    place = ((row * frames + t) * heads + head)[:, None] * WIDTH + c[None, :]
    tl.store(x + place, values.to(x.dtype.element_ty), mask=(t < frames)[:, None] & (c < WIDTH)[None, :])


@triton.jit
def bias_of(  # noqa: PLR0917
    scores: tl.tensor,
    places: tl.tensor,
    row: tl.tensor,
    head: tl.tensor,
    q: tl.tensor,
    t: tl.tensor,
    frames: tl.tensor,
    reach: tl.tensor,
) -> tl.tensor:
    """What a query's weight is multiplied with, of queries ``q`` by keys ``t``."""
    if scores is not None:
        return tl.load(scores + scored(places, row, head, q, t, frames, reach))
    return -tl.abs(distance_of(places, row, q, t, frames)).to(tl.float32)


@triton.jit
def distance_of(places: tl.tensor, row: tl.tensor, q: tl.tensor, t: tl.tensor, frames: tl.tensor) -> tl.tensor:
    """Keys ``t`` minus queries ``q``, in frames of the row that they were taken from."""
    if places is not None:
        q = tl.load(places + row * frames + q, mask=q < frames, other=0)
        t = tl.load(places + row * frames + t, mask=t < frames, other=0)
    return t[None, :] - q[:, None]


@triton.jit
def scored(  # noqa: PLR0917
    places: tl.tensor,
    row: tl.tensor,
    head: tl.tensor,
    q: tl.tensor,
    t: tl.tensor,
    frames: tl.tensor,
    reach: tl.tensor,
) -> tl.tensor:
    """Where among a head's scores that of a distance stands; beyond their reach, the last of its side."""
    distance = distance_of(places, row, q, t, frames)
    return head * (2 * reach + 1) + reach + tl.minimum(tl.maximum(distance, -reach), reach)


@triton.jit
def logits_of(  # noqa: PLR0917
    query: tl.tensor,
    key: tl.tensor,
    bias: tl.tensor,
    valid: tl.tensor,
    row: tl.tensor,
    t: tl.tensor,
    frames: tl.tensor,
    scale: tl.tensor,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Scores of queries by keys, of which 2^x is the weight."""
    product = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    logits = (product * scale + bias) * _LOG2_E
    if valid is not None:
        real = tl.load(valid + row * frames + t, mask=t < frames, other=0)
        logits = tl.where((real != 0)[None, :], logits, _NEVER)
    return tl.where((t < frames)[None, :], logits, float("-inf"))


@triton.jit
def kept_pairs(  # noqa: PLR0917
    shares: tl.tensor,
    seeds: tl.tensor,
    line: tl.tensor,
    q: tl.tensor,
    t: tl.tensor,
    frames: tl.tensor,
    threshold: tl.tensor,
    gain: tl.tensor,
    DROPS: tl.constexpr,
) -> tl.tensor:
    """What dropout leaves of queries by keys, whose place is that in (B, H, T, T)."""
    place = (line * frames + q)[:, None] * frames + t[None, :]
    return kept(shares, seeds, place, threshold, gain, DROPS)


@triton.jit
def add_by_distance(  # noqa: PLR0917
    score_grad: tl.tensor,
    of_bias: tl.tensor,
    places: tl.tensor,
    row: tl.tensor,
    head: tl.tensor,
    q: tl.tensor,
    t: tl.tensor,
    frames: tl.tensor,
    reach: tl.tensor,
) -> None:
    """To the gradient of each distance what all pairs at that distance have."""
    place = scored(places, row, head, q, t, frames, reach)
    tl.atomic_add(score_grad + place, of_bias, mask=(q < frames)[:, None] & (t < frames)[None, :], sem="relaxed")


@triton.jit
def gradients_of_logits(  # noqa: PLR0917
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    grad: tl.tensor,
    bias: tl.tensor,
    lse: tl.tensor,
    along: tl.tensor,
    q: tl.tensor,
    t: tl.tensor,
    valid: tl.tensor,
    seeds: tl.tensor,
    line: tl.tensor,
    row: tl.tensor,
    frames: tl.tensor,
    scale: tl.tensor,
    threshold: tl.tensor,
    gain: tl.tensor,
    DROPS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Weights of queries by keys again, and the gradients of their scores."""
    logits = logits_of(query, key, bias, valid, row, t, frames, scale, PRECISION)
    share = tl.exp2(logits - lse[:, None])
    of_share = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
    of_share = kept_pairs(of_share, seeds, line, q, t, frames, threshold, gain, DROPS)
    return share, share * (of_share - along[:, None])
