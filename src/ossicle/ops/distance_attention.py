"""Attention whose scores carry a bias that depends on the distance of query and key alone, times a number a query has.

On a GPU it is FlashAttention's algorithm in Triton, which makes the bias of a tile from places: torch's fused kernels
take a bias as a number for each pair of frames, and keep its gradient. Elsewhere torch's kernels serve.
"""

from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ossicle.core.shapes import Bool, Float, Int64
from ossicle.ops.dropout_hash import draw_seeds
from ossicle.ops.relative_position import BIAS_BUDGET, attend_biased, by_pair, distances
from ossicle.ops.triton_kernels import serves

_WIDEST = 128
"""Channels of a head for which the kernels' tiles fit into a multiprocessor's memory."""


def attend_by_distance(
    q_BTHK: Float[Tensor, "B T H K"],
    k_BTHK: Float[Tensor, "B T H K"],
    v_BTHK: Float[Tensor, "B T H K"],
    weight_BHT: Float[Tensor, "#B H #T"],
    *,
    score_RH: Float[Tensor, "R H"] | None = None,
    place_BT: Int64[Tensor, "B T"] | None = None,
    valid_BT: Bool[Tensor, "B T"] | None = None,
    dropout: float = 0.0,
    budget: int = BIAS_BUDGET,
) -> Float[Tensor, "B T H K"]:
    """Softmax attention over q k / sqrt(K) + weight_q score(distance) (arXiv 2108.12409, section 3; 2110.13900, III-A).

    Args:
        q_BTHK: Queries, shape (B, T, H, K).
        k_BTHK: Keys, same shape.
        v_BTHK: Values, same shape.
        weight_BHT: What a query's bias is multiplied with, shape (B or 1, H, T or 1).
        score_RH: Bias of each distance (key minus query) from -r to r frames, shape (2r + 1, H); those beyond take the
            last of their side. Where frames stand one after another r is T - 1, as
            :func:`~ossicle.ops.relative_position.distances` has it. None for minus the distance itself.
        place_BT: Where frames stand; None where they stand one after another.
        valid_BT: True where a frame is real, or None where every frame is.
        dropout: Probability with which an attention weight is dropped; 0 outside training.
        budget: Elements of the bias that may exist at one time where torch's kernels serve.
    """
    if q_BTHK.device.type != "cuda" or not serves(
        "attention with biases by distance", (q_BTHK.dtype,), _problem(q_BTHK)
    ):
        bias = _Bias(weight_BHT, score_RH, place_BT, q_BTHK.shape[1])
        return attend_biased(q_BTHK, k_BTHK, v_BTHK, bias, valid_BT=valid_BT, dropout=dropout, budget=budget)
    rows, frames, heads, _ = q_BTHK.shape
    return _forward(
        q_BTHK.contiguous(),
        k_BTHK.contiguous(),
        v_BTHK.contiguous(),
        weight_BHT.float().expand(rows, heads, frames).contiguous(),
        None if score_RH is None else score_RH.float().T.contiguous(),
        None if place_BT is None else place_BT.to(torch.int32).contiguous(),
        None if valid_BT is None else valid_BT.contiguous(),
        draw_seeds(q_BTHK.device),
        dropout,
    )[0]


class _Bias:
    """The bias of a block of queries, as :func:`attend_biased` asks for it."""

    def __init__(self, weight_BHT: Tensor, score_RH: Tensor | None, place_BT: Tensor | None, frames: int) -> None:
        if place_BT is None and score_RH is None:
            score_RH = -distances(frames, weight_BHT.device).abs()[:, None].to(weight_BHT.dtype)
        self.alike = weight_BHT.shape[::2] == (1, 1) and place_BT is None
        # One weight for all queries goes into the table, whose diagonals are a view.
        self.score_RH = score_RH * weight_BHT[0, :, 0] if self.alike and score_RH is not None else score_RH
        self.weight_BHT, self.place_BT, self.frames = weight_BHT, place_BT, frames

    def __call__(self, start: int, stop: int) -> Tensor:
        """Of queries ``start`` to ``stop``."""
        if self.place_BT is None:
            assert self.score_RH is not None
            bias_HQT = by_pair(self.score_RH, self.frames, start, stop)
            if self.alike:
                return bias_HQT[None]
        else:
            distance_BQT = self.place_BT[:, None, :] - self.place_BT[:, start:stop, None]
            bias_HQT = self._score(distance_BQT)
        weight_BHQ = self.weight_BHT if self.weight_BHT.shape[2] == 1 else self.weight_BHT[:, :, start:stop]
        return weight_BHQ[..., None] * bias_HQT

    def _score(self, distance_BQT: Tensor) -> Tensor:
        """What a weight is multiplied with at a distance, (B, H, Q, T) or (B, 1, Q, T)."""
        if self.score_RH is None:
            return -distance_BQT.abs()[:, None].to(self.weight_BHT.dtype)
        reach = len(self.score_RH) // 2
        return self.score_RH.T[:, distance_BQT.clamp(-reach, reach) + reach].transpose(0, 1)


def _problem(q_BTHK: Tensor) -> str | None:
    """What of a size speaks against the kernels, or None."""
    width = q_BTHK.shape[-1]
    return f"they hold {_WIDEST} channels of a head, not {width}" if width > _WIDEST else None


@torch.library.custom_op("ossicle::distance_attention", mutates_args=())
def _forward(  # noqa: PLR0917
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    weight_BHT: Tensor,
    score_HR: Tensor | None,
    place_BT: Tensor | None,
    valid_BT: Tensor | None,
    seeds_2: Tensor,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    # Only here: triton is slow to import, and CPU runs need none of it.
    from ossicle.ops import distance_attention_triton as kernels  # noqa: PLC0415

    return kernels.forward(
        kernels.Inputs(q_BTHK, k_BTHK, v_BTHK, weight_BHT, score_HR, place_BT, valid_BT, seeds_2, dropout)
    )


@_forward.register_fake
def _forward_shapes(
    q_BTHK: Tensor,
    k_BTHK: Tensor,  # noqa: ARG001
    v_BTHK: Tensor,  # noqa: ARG001
    weight_BHT: Tensor,
    *_: object,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_BTHK), torch.empty_like(weight_BHT)


@torch.library.custom_op("ossicle::distance_attention_backward", mutates_args=())
def _backward(  # noqa: PLR0917
    grad_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    weight_BHT: Tensor,
    score_HR: Tensor | None,
    place_BT: Tensor | None,
    valid_BT: Tensor | None,
    seeds_2: Tensor,
    dropout: float,
    mixed_BTHK: Tensor,
    sum_BHT: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from ossicle.ops import distance_attention_triton as kernels  # noqa: PLC0415

    inputs = kernels.Inputs(q_BTHK, k_BTHK, v_BTHK, weight_BHT, score_HR, place_BT, valid_BT, seeds_2, dropout)
    return kernels.backward(grad_BTHK.contiguous(), inputs, mixed_BTHK, sum_BHT)


@_backward.register_fake
def _backward_shapes(  # noqa: PLR0917
    grad_BTHK: Tensor,  # noqa: ARG001
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    weight_BHT: Tensor,
    score_HR: Tensor | None,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    score_grad_HR = weight_BHT.new_empty(0) if score_HR is None else torch.empty_like(score_HR)
    q_grad, k_grad, v_grad = (torch.empty_like(x) for x in (q_BTHK, k_BTHK, v_BTHK))
    return q_grad, k_grad, v_grad, torch.empty_like(weight_BHT), score_grad_HR


def _save(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor | float | None, ...], output: tuple[Tensor, Tensor]
) -> None:
    """Keep what was read, what was said and each query's sum."""
    *tensors, dropout = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*cast("list[Tensor]", tensors), *output)
    setattr(ctx, "dropout", dropout)  # noqa: B010


def _gradient(ctx: torch.autograd.function.FunctionCtx, grad_BTHK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of queries, keys, values, weights and scores."""
    *tensors, mixed_BTHK, sum_BHT = cast("tuple[Tensor, ...]", getattr(ctx, "saved_tensors"))  # noqa: B009
    dropout = cast("float", getattr(ctx, "dropout"))  # noqa: B009
    *grads, score_grad_HR = _backward(grad_BTHK, *tensors, dropout, mixed_BTHK, sum_BHT)
    return *grads, None if tensors[4] is None else score_grad_HR, None, None, None, None


_forward.register_autograd(_gradient, setup_context=_save)


@register_flop_formula(torch.ops.ossicle.distance_attention)
def _forward_flops(q_shape: tuple[int, ...], *_: object, **__: object) -> int:
    """Two products of T x T by K for each head."""
    rows, frames, heads, width = q_shape
    return 2 * 2 * rows * heads * frames * frames * width


@register_flop_formula(torch.ops.ossicle.distance_attention_backward)
def _backward_flops(grad_shape: tuple[int, ...], *_: object, **__: object) -> int:
    """Five products, as torch counts its own kernels: scores again, and a gradient of each factor."""
    return 5 * _forward_flops(grad_shape) // 2
