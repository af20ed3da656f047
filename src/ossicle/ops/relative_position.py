"""Attention whose scores carry a bias that depends on where query and key stand, and the buckets of distances."""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ossicle.core.shapes import Bool, Float, Int64

BIAS_BUDGET = 2**28
"""Elements of the bias that exist at one time: a gigabyte in float32."""


class Bias(Protocol):
    """Score biases of some queries, made when they are needed."""

    def __call__(self, start: int, stop: int) -> Float[Tensor, "B H Q T"]:
        """The bias of queries ``start`` to ``stop`` towards every key; dimensions of size 1 are broadcast."""
        ...


def attend_biased(
    q_BTHK: Float[Tensor, "B T H K"],
    k_BTHK: Float[Tensor, "B T H K"],
    v_BTHK: Float[Tensor, "B T H K"],
    bias: Bias,
    *,
    valid_BT: Bool[Tensor, "B T"] | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    budget: int = BIAS_BUDGET,
) -> Float[Tensor, "B T H K"]:
    """Softmax attention with a bias on its scores, through torch's fused kernels.

    A bias that depends on the query has B x H x T x T elements. Where these are more than the budget, queries are taken
    in blocks and each block's bias is made again in the backward pass, so that memory grows with T and not its square.

    Args:
        q_BTHK: Queries, shape (B, T, H, K).
        k_BTHK: Keys, same shape.
        v_BTHK: Values, same shape.
        bias: Makes the bias of a block of queries.
        valid_BT: True where a frame is real, or None where every frame is.
        dropout: Probability with which an attention weight is dropped; 0 outside training.
        scale: Factor of the products of queries and keys; 1/sqrt(K) where None.
        budget: Elements of the bias that may exist at one time.
    """
    rows, frames, heads, _ = q_BTHK.shape
    q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))

    def block(q_BHQK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, start: int) -> Tensor:
        bias_BHQT = bias(start, start + q_BHQK.shape[2]).to(q_BHQK.dtype)
        if valid_BT is not None:
            bias_BHQT = bias_BHQT.masked_fill(~valid_BT[:, None, None, :], torch.finfo(bias_BHQT.dtype).min)
        return functional.scaled_dot_product_attention(q_BHQK, k_BHTK, v_BHTK, bias_BHQT, dropout, scale=scale)

    length = max(1, budget // max(1, rows * heads * frames))
    if length >= frames:
        return block(q_BHTK, k_BHTK, v_BHTK, 0).transpose(1, 2)
    mixed = [
        checkpoint(block, q_BHQK, k_BHTK, v_BHTK, place * length, use_reentrant=False)
        for place, q_BHQK in enumerate(q_BHTK.split(length, dim=2))
    ]
    return torch.cat(mixed, dim=2).transpose(1, 2)


def distances(num_frames: int, device: torch.device) -> Int64[Tensor, " R"]:
    """Every distance from a query to a key (key minus query) within T frames, ascending: R = 2T - 1 of them."""
    return torch.arange(1 - num_frames, num_frames, device=device)


def by_pair(
    x_RH: Float[Tensor, "R H"], num_frames: int, start: int = 0, stop: int | None = None
) -> Float[Tensor, "H Q T"]:
    """What belongs to a distance, laid out by query and key: a view of the diagonals, nothing is looked up per pair.

    Args:
        x_RH: One row for each of :func:`distances`, shape (2T - 1, H).
        num_frames: Frames (T).
        start: First query.
        stop: Query after the last; T where None.
    """
    stop = num_frames if stop is None else stop
    # query i sees keys 0 ... T - 1 at distances -i ... T - 1 - i, which start at place T - 1 - i
    used_HR = x_RH.T[:, num_frames - stop : 2 * num_frames - 1 - start]
    return used_HR.unfold(1, num_frames, 1).flip(1)


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """How fast each head's scores fall with distance in ALiBi (arXiv 2108.12409, section 3): 2^(-8/H), 2^(-16/H) ...

    Where the number of heads is no power of two, those of the power below, and then every other one of the power above,
    as in the authors' models.

    Args:
        num_heads: Attention heads (H).
    """
    below = 2 ** (num_heads.bit_length() - 1)
    own = [2 ** (-8 * (head + 1) / below) for head in range(below)]
    between = [2 ** (-4 * (head + 1) / below) for head in range(0, 2 * below, 2)]
    return tuple((own + between)[:num_heads])


def wavlm_buckets(
    distance_R: Int64[Tensor, " R"], num_buckets: int = 320, max_distance: int = 800
) -> Int64[Tensor, " R"]:
    """Buckets of distances as in T5 and WavLM: half for each side, half of those exact, the rest on a log scale.

    Args:
        distance_R: Key minus query, in frames.
        num_buckets: Buckets of both sides together.
        max_distance: Distance from which on all share the last bucket of their side.

    Source: arXiv 1910.10683, section 2.1; arXiv 2110.13900, section III-A.
    """
    side = num_buckets // 2
    exact = side // 2
    size_R = distance_R.abs()
    log_R = torch.log(size_R.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far_R = (exact + log_R * (side - exact)).long().clamp(max=side - 1)
    return (distance_R > 0).long() * side + torch.where(size_R < exact, size_R, far_R)


def deberta_buckets(
    distance_R: Int64[Tensor, " R"], num_buckets: int = 256, max_distance: int = 512
) -> Int64[Tensor, " R"]:
    """Buckets of distances as in DeBERTa v2 and SEW-D: 2 x ``num_buckets`` places, exact up to half a side.

    Args:
        distance_R: Query minus key, in frames.
        num_buckets: Buckets of each side.
        max_distance: Distance that the last bucket of a side stands for; those beyond share it.

    Source: arXiv 2006.03654, equation 3, with the logarithmic buckets of the models that were released later.
    """
    middle = num_buckets // 2
    size_R = distance_R.abs().clamp(min=middle - 1)
    # Both logarithms in one precision: their ratio must be no more than one at the last bucket's distance.
    whole = torch.full((), (max_distance - 1) / middle, dtype=torch.float32, device=distance_R.device).log()
    log_R = torch.log(size_R.float() / middle) / whole
    far_R = ((log_R * (middle - 1)).ceil().long() + middle) * distance_R.sign()
    bucket_R = torch.where(size_R <= middle, distance_R, far_R)
    return (bucket_R + num_buckets).clamp(0, 2 * num_buckets - 1)
