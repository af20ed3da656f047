"""Attention on a CPU, with or without dropout: products in the type of the inputs, one pass over the scores between."""

import math
from typing import Final

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from ossicle.ops.dropout_hash import draw_seed
from ossicle.ops.softmax_cpu import softmax_dropout, softmax_dropout_backward

SCORES_BUDGET: Final = 2**27
"""Scores that are held at one time, half a gigabyte in float32."""


def cpu_attention(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    valid_BT: Tensor | None,
    dropout: float,
    *,
    budget: int = SCORES_BUDGET,
) -> Tensor:
    """Softmax attention (arXiv 1706.03762, equation 1) with dropout of its weights; float32 or bfloat16.

    Scores, B x H x T x T of them, are products in float32, as in the fused kernels of GPUs; weights are kept in the
    type of the inputs. Where there are more than the budget, queries are taken in blocks whose weights are made again
    in the backward pass, so that memory grows with T and not its square. Which weights are dropped follows from a seed
    that torch's default generator draws: see :mod:`ossicle.ops.dropout_hash`.
    """
    rows, frames, heads = q_BTHK.shape[:3]
    q_RTK, k_RTK, v_RTK = (x.transpose(1, 2).reshape(rows * heads, frames, -1) for x in (q_BTHK, k_BTHK, v_BTHK))

    def seed() -> Tensor:  # who drops nothing leaves the generator
        return draw_seed() if dropout else torch.zeros((), dtype=torch.int64)

    length = max(1, budget // max(1, rows * heads * frames))
    if length >= frames:
        mixed_RTK = _Attention.apply(q_RTK, k_RTK, v_RTK, valid_BT, seed(), dropout)
    else:
        blocks = [
            checkpoint(_Attention.apply, q_RQK, k_RTK, v_RTK, valid_BT, seed(), dropout, use_reentrant=False)
            for q_RQK in q_RTK.split(length, 1)
        ]
        mixed_RTK = torch.cat(blocks, 1)
    return mixed_RTK.unflatten(0, (rows, heads)).transpose(1, 2)


class _Attention(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: FunctionCtx,
        q_RTK: Tensor,
        k_RTK: Tensor,
        v_RTK: Tensor,
        valid_BT: Tensor | None,
        seed: Tensor,
        dropout: float,
    ) -> Tensor:
        temperature = 1 / math.sqrt(q_RTK.shape[-1])
        with torch.autocast("cpu", enabled=False):  # which would make them bfloat16 again
            scores_RTT = torch.bmm(q_RTK.float(), k_RTK.float().mT)
        narrow = q_RTK.dtype == torch.bfloat16
        weights, dropped = softmax_dropout(scores_RTT.flatten(0, 1), valid_BT, seed, temperature, dropout, narrow)
        ctx.save_for_backward(q_RTK, k_RTK, v_RTK, weights, seed)
        ctx.dropout = dropout  # ty: ignore[missing-attribute]  the context carries what is set on it
        return torch.bmm((dropped if dropout else weights).view_as(scores_RTT), v_RTK)

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_RTK, k_RTK, v_RTK, weights, seed = ctx.saved_tensors  # ty: ignore[missing-attribute]
        temperature = 1 / math.sqrt(q_RTK.shape[-1])
        grad_RTK = grads[0].contiguous()
        grad_weights_RTT = torch.bmm(grad_RTK, v_RTK.mT)
        dropped, grad_scores = softmax_dropout_backward(
            weights,
            grad_weights_RTT.flatten(0, 1),
            seed,
            temperature,
            ctx.dropout,  # ty: ignore[missing-attribute]
        )
        dropped = dropped if ctx.dropout else weights  # ty: ignore[missing-attribute]
        grad_scores_RTT = grad_scores.view_as(grad_weights_RTT)
        return (
            torch.bmm(grad_scores_RTT, k_RTK),
            torch.bmm(grad_scores_RTT.mT, q_RTK),
            torch.bmm(dropped.view_as(grad_weights_RTT).mT, grad_RTK),
            None,
            None,
            None,
        )
