# ty: ignore[invalid-argument-type]  kernels are compiled from their text, for which types are those on the device
"""Attention on a GPU whose scores carry a bias by distance: Triton kernels that make the bias from places.

Nothing of the size of T x T is kept or written: not the bias, not its gradient. There and back they are those of
FlashAttention (arXiv 2307.08691, algorithms 1 and 2), the way back as two kernels: one goes over keys for the
gradients of queries and biases, one over queries for those of keys and values.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossicle.ops.distance_attention_tiles import (
    add_by_distance,
    bias_of,
    gradients_of_logits,
    kept_pairs,
    load_tile,
    logits_of,
    store_tile,
)
from ossicle.ops.dropout_triton import drops


class Inputs(NamedTuple):
    """What the kernels read; letters beside the legend's: R distances, as many before a query as behind it.

    Args:
        q_BTHK: Queries, contiguous as keys and values are.
        k_BTHK: Keys.
        v_BTHK: Values.
        weight_BHT: What a query's bias is multiplied with, float32, shape (B, H, T).
        score_HR: Biases by distance, float32, shape (H, R), which the first and the last stand for all beyond; None for
            minus the distance itself.
        place_BT: Where frames stand, int32, shape (B, T); None where they stand one after another.
        valid_BT: True where a frame is real; None where every frame is.
        seeds_2: Of the dropout.
        dropout: Probability with which a weight is dropped.
    """

    q_BTHK: Tensor
    k_BTHK: Tensor
    v_BTHK: Tensor
    weight_BHT: Tensor
    score_HR: Tensor | None
    place_BT: Tensor | None
    valid_BT: Tensor | None
    seeds_2: Tensor
    dropout: float


def forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Mixed values (B, T, H, K), and the logarithm to base two of each query's sum (B, H, T)."""
    mixed_BTHK = torch.empty_like(inputs.q_BTHK)
    sum_BHT = torch.empty_like(inputs.weight_BHT)
    tiles = _tiles(inputs, forth=True)
    if mixed_BTHK.numel():
        _forward_kernel[_grid(inputs, tiles["BLOCK_Q"])](
            *_pointers(inputs), mixed_BTHK, sum_BHT, *_scalars(inputs), **drops(inputs.dropout), **tiles
        )
    return mixed_BTHK, sum_BHT


def backward(
    grad_BTHK: Tensor, inputs: Inputs, mixed_BTHK: Tensor, sum_BHT: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, values, weights and biases by distance; empty for what is not there."""
    q_grad, k_grad, v_grad = (torch.empty_like(inputs.q_BTHK) for _ in range(3))
    weight_grad_BHT, along_BHT = torch.empty_like(sum_BHT), torch.empty_like(sum_BHT)
    score_grad_HR = sum_BHT.new_zeros(0 if inputs.score_HR is None else inputs.score_HR.shape)
    tiles = _tiles(inputs, forth=False)
    if mixed_BTHK.numel():
        given = (*_pointers(inputs), grad_BTHK, mixed_BTHK, sum_BHT)
        rest = {**drops(inputs.dropout), **tiles}
        _query_kernel[_grid(inputs, tiles["BLOCK_Q"])](
            *given, q_grad, weight_grad_BHT, score_grad_HR, along_BHT, *_scalars(inputs), **rest
        )
        _key_kernel[_grid(inputs, tiles["BLOCK_T"])](
            *given[:-2], sum_BHT, along_BHT, k_grad, v_grad, *_scalars(inputs), **rest
        )
    return q_grad, k_grad, v_grad, weight_grad_BHT, score_grad_HR


def _pointers(inputs: Inputs) -> tuple[Tensor | None, ...]:
    """What is read; kernels are made anew for what is None."""
    valid_BT = None if inputs.valid_BT is None else inputs.valid_BT.view(torch.uint8)
    return inputs._replace(valid_BT=valid_BT)[:-1]


def _scalars(inputs: Inputs) -> tuple[int, int, int, float]:
    """Heads, frames, the farthest distance that has a score of its own, and the scale of products."""
    _, frames, heads, width = inputs.q_BTHK.shape
    reach = 0 if inputs.score_HR is None else inputs.score_HR.shape[1] // 2
    return heads, frames, reach, 1 / math.sqrt(width)


def _grid(inputs: Inputs, block: int) -> tuple[int, int]:
    rows, frames, heads, _ = inputs.q_BTHK.shape
    return triton.cdiv(frames, block), rows * heads


def _tiles(inputs: Inputs, *, forth: bool) -> dict[str, int | bool | str]:
    """Sizes of the tiles, and TF32 products where the user lets torch's own take them."""
    width = inputs.q_BTHK.shape[-1]
    small = width > 64 or inputs.q_BTHK.dtype == torch.float32
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "WIDTH": width,
        "BLOCK_K": max(16, triton.next_power_of_2(width)),
        "BLOCK_Q": 128 if forth and not small else 64,
        "BLOCK_T": 32 if small else 64,
        "PRECISION": "ieee" if exact else "tf32",
        "num_warps": 8 if forth and not small else 4,
        "num_stages": 2,
    }


@triton.jit
def _forward_kernel(  # noqa: PLR0917
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    weights: tl.tensor,
    scores: tl.tensor,
    places: tl.tensor,
    valid: tl.tensor,
    seeds: tl.tensor,
    mixed: tl.tensor,
    sums: tl.tensor,
    heads: tl.tensor,
    frames: tl.tensor,
    reach: tl.tensor,
    scale: tl.tensor,
    threshold: tl.tensor,
    gain: tl.tensor,
    DROPS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    line = tl.program_id(1).to(tl.int64)
    row, head = line // heads, line % heads
    q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query = load_tile(queries, row, head, q, heads, frames, WIDTH, BLOCK_K)
    weight = tl.load(weights + line * frames + q, mask=q < frames, other=0.0)
    highest = tl.full((BLOCK_Q,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    out = tl.zeros((BLOCK_Q, BLOCK_K), dtype=tl.float32)
    for start in range(0, frames, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        key = load_tile(keys, row, head, t, heads, frames, WIDTH, BLOCK_K)
        value = load_tile(values, row, head, t, heads, frames, WIDTH, BLOCK_K)
        bias = weight[:, None] * bias_of(scores, places, row, head, q, t, frames, reach)
        logits = logits_of(query, key, bias, valid, row, t, frames, scale, PRECISION)
        above = tl.maximum(highest, tl.max(logits, 1))
        share = tl.exp2(logits - above[:, None])
        fade = tl.exp2(highest - above)
        total = total * fade + tl.sum(share, 1)
        share = kept_pairs(share, seeds, line, q, t, frames, threshold, gain, DROPS)
        out = tl.dot(share.to(value.dtype), value, out * fade[:, None], input_precision=PRECISION)
        highest = above
    store_tile(mixed, out / total[:, None], row, head, q, heads, frames, WIDTH, BLOCK_K)
    tl.store(sums + line * frames + q, highest + tl.log2(total), mask=q < frames)


@triton.jit
def _query_kernel(  # noqa: PLR0917
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    weights: tl.tensor,
    scores: tl.tensor,
    places: tl.tensor,
    valid: tl.tensor,
    seeds: tl.tensor,
    grads: tl.tensor,
    mixed: tl.tensor,
    sums: tl.tensor,
    query_grad: tl.tensor,
    weight_grad: tl.tensor,
    score_grad: tl.tensor,
    alongs: tl.tensor,
    heads: tl.tensor,
    frames: tl.tensor,
    reach: tl.tensor,
    scale: tl.tensor,
    threshold: tl.tensor,
    gain: tl.tensor,
    DROPS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    line = tl.program_id(1).to(tl.int64)
    row, head = line // heads, line % heads
    q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query = load_tile(queries, row, head, q, heads, frames, WIDTH, BLOCK_K)
    grad = load_tile(grads, row, head, q, heads, frames, WIDTH, BLOCK_K)
    said = load_tile(mixed, row, head, q, heads, frames, WIDTH, BLOCK_K)
    weight = tl.load(weights + line * frames + q, mask=q < frames, other=0.0)
    lse = tl.load(sums + line * frames + q, mask=q < frames, other=float("inf"))
    along = tl.sum(grad.to(tl.float32) * said.to(tl.float32), 1)
    tl.store(alongs + line * frames + q, along, mask=q < frames)
    of_query = tl.zeros((BLOCK_Q, BLOCK_K), dtype=tl.float32)
    of_weight = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    mean, drift = tl.zeros((BLOCK_Q,), dtype=tl.float32), tl.zeros((BLOCK_Q,), dtype=tl.float32)
    for start in range(0, frames, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        key = load_tile(keys, row, head, t, heads, frames, WIDTH, BLOCK_K)
        value = load_tile(values, row, head, t, heads, frames, WIDTH, BLOCK_K)
        unit = bias_of(scores, places, row, head, q, t, frames, reach)
        share, of_logit = gradients_of_logits(
            query, key, value, grad, weight[:, None] * unit, lse, along, q, t,
            valid, seeds, line, row, frames, scale, threshold, gain, DROPS, PRECISION,
        )  # fmt: skip
        of_query = tl.dot(of_logit.to(key.dtype), key, of_query, input_precision=PRECISION)
        of_weight += tl.sum(of_logit * unit, 1)
        mean += tl.sum(share * unit, 1)
        drift += tl.sum(of_logit, 1)
        if scores is not None:
            add_by_distance(score_grad, of_logit * weight[:, None], places, row, head, q, t, frames, reach)
    store_tile(query_grad, of_query * scale, row, head, q, heads, frames, WIDTH, BLOCK_K)
    # A query's gradients of logits add up to zero but for the rounding of what it said, which distances would magnify.
    tl.store(weight_grad + line * frames + q, of_weight - mean * drift, mask=q < frames)


@triton.jit
def _key_kernel(  # noqa: PLR0917
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    weights: tl.tensor,
    scores: tl.tensor,
    places: tl.tensor,
    valid: tl.tensor,
    seeds: tl.tensor,
    grads: tl.tensor,
    sums: tl.tensor,
    alongs: tl.tensor,
    key_grad: tl.tensor,
    value_grad: tl.tensor,
    heads: tl.tensor,
    frames: tl.tensor,
    reach: tl.tensor,
    scale: tl.tensor,
    threshold: tl.tensor,
    gain: tl.tensor,
    DROPS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    line = tl.program_id(1).to(tl.int64)
    row, head = line // heads, line % heads
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    key = load_tile(keys, row, head, t, heads, frames, WIDTH, BLOCK_K)
    value = load_tile(values, row, head, t, heads, frames, WIDTH, BLOCK_K)
    of_key = tl.zeros((BLOCK_T, BLOCK_K), dtype=tl.float32)
    of_value = tl.zeros((BLOCK_T, BLOCK_K), dtype=tl.float32)
    for start in range(0, frames, BLOCK_Q):
        q = start + tl.arange(0, BLOCK_Q)
        query = load_tile(queries, row, head, q, heads, frames, WIDTH, BLOCK_K)
        grad = load_tile(grads, row, head, q, heads, frames, WIDTH, BLOCK_K)
        weight = tl.load(weights + line * frames + q, mask=q < frames, other=0.0)
        lse = tl.load(sums + line * frames + q, mask=q < frames, other=float("inf"))
        along = tl.load(alongs + line * frames + q, mask=q < frames, other=0.0)
        unit = bias_of(scores, places, row, head, q, t, frames, reach)
        share, of_logit = gradients_of_logits(
            query, key, value, grad, weight[:, None] * unit, lse, along, q, t,
            valid, seeds, line, row, frames, scale, threshold, gain, DROPS, PRECISION,
        )  # fmt: skip
        left = kept_pairs(share, seeds, line, q, t, frames, threshold, gain, DROPS)
        of_value = tl.dot(tl.trans(left.to(grad.dtype)), grad, of_value, input_precision=PRECISION)
        of_key = tl.dot(tl.trans(of_logit.to(query.dtype)), query, of_key, input_precision=PRECISION)
    store_tile(key_grad, of_key * scale, row, head, t, heads, frames, WIDTH, BLOCK_K)
    store_tile(value_grad, of_value, row, head, t, heads, frames, WIDTH, BLOCK_K)
