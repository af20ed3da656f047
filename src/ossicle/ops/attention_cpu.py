"""Attention on a CPU, with or without dropout: C++ that is compiled at first use and holds no scores.

torch's fused attention for CPUs has no dropout; its plain form works in float32 whatever it is given, and passes over
the scores again and again: to scale, for a softmax that is safe, to draw a mask number by number, to apply it.
"""

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.utils.flop_counter import register_flop_formula

from ossicle.core.shapes import Bool, Float
from ossicle.ops import native
from ossicle.ops.dropout_hash import draw_seed, threshold_of

SUFFIXES: Final = {torch.float32: "float", torch.bfloat16: "bfloat16"}


def cpu_attention(
    q_BTHK: Float[Tensor, "B T H K"],
    k_BTHK: Float[Tensor, "B T H K"],
    v_BTHK: Float[Tensor, "B T H K"],
    valid_BT: Bool[Tensor, "B T"] | None,
    dropout: float,
) -> Float[Tensor, "B T H K"]:
    """Softmax attention (arXiv 1706.03762, equation 1) with dropout of its weights; float32 or bfloat16.

    Scores and their exponentials are float32. They are made a block at a time, and again on the way back, so that
    memory grows with T and not with its square (arXiv 2205.14135). Heads are shared out over threads. Which weights are
    dropped follows from a seed that torch's default generator draws: see :mod:`ossicle.ops.dropout_hash`.

    Args:
        q_BTHK: Queries, shape (B, T, H, K).
        k_BTHK: Keys.
        v_BTHK: Values.
        valid_BT: True where a key is real, or None where all are.
        dropout: Probability with which a weight is dropped.

    Raises:
        TypeError: They are of another type, or of several.
    """
    # who drops nothing leaves the generator
    seed = draw_seed() if dropout else torch.zeros((), dtype=torch.int64)
    return _attend(q_BTHK, k_BTHK, v_BTHK, valid_BT, seed, dropout)[0]


def _declare(library: ctypes.CDLL) -> None:
    """Types of the arguments."""
    pointer, count, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    after = [pointer, count, real, real, count, count, count, count, count]
    for suffix in SUFFIXES.values():
        getattr(library, f"attention_{suffix}").argtypes = [pointer] * 7 + after
        getattr(library, f"attention_backward_{suffix}").argtypes = [pointer] * 11 + after


CODE: Final = native.Source(Path(__file__).with_name("attention_cpu.cpp"), _declare)


@torch.library.custom_op("ossicle::cpu_attention", mutates_args=(), device_types="cpu")
def _attend(  # noqa: PLR0917  operators of torch take their arguments in a row
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, valid_BT: Tensor | None, seed: Tensor, dropout: float
) -> tuple[Tensor, Tensor]:
    """What is mixed, and of each query its highest score and the inverse of its sum of exponentials, (B, H, T, 2)."""
    q, k, v = _read((q_BTHK, k_BTHK, v_BTHK))
    rows, frames, heads, _ = q.shape
    out, stats_BHT2 = torch.empty(q.shape, dtype=q.dtype), torch.empty(rows, heads, frames, 2)
    valid = None if valid_BT is None else valid_BT.contiguous()
    getattr(CODE.library, f"attention_{SUFFIXES[q.dtype]}")(
        *(x.data_ptr() for x in (q, k, v)), _strides(q, k, v), None if valid is None else valid.data_ptr(),
        out.data_ptr(), stats_BHT2.data_ptr(), *_numbers(q, seed, dropout),
    )  # fmt: skip
    return out, stats_BHT2


@_attend.register_fake
def _attend_shapes(
    q_BTHK: Tensor, _k: Tensor, _v: Tensor, _valid: Tensor | None, _seed: Tensor, _dropout: float
) -> tuple[Tensor, Tensor]:
    rows, frames, heads, _ = q_BTHK.shape
    return q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty((rows, heads, frames, 2), dtype=torch.float32)


@torch.library.custom_op("ossicle::cpu_attention_backward", mutates_args=(), device_types="cpu")
def _attend_backward(  # noqa: PLR0917
    grad_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHK: Tensor,
    valid_BT: Tensor | None,
    seed: Tensor,
    dropout: float,
    out_BTHK: Tensor,
    stats_BHT2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    q, k, v, grad = _read((q_BTHK, k_BTHK, v_BTHK, grad_BTHK))
    grads = [torch.empty(q.shape, dtype=q.dtype) for _ in range(3)]
    valid = None if valid_BT is None else valid_BT.contiguous()
    getattr(CODE.library, f"attention_backward_{SUFFIXES[q.dtype]}")(
        *(x.data_ptr() for x in (q, k, v, grad)), _strides(q, k, v, grad), None if valid is None else valid.data_ptr(),
        out_BTHK.data_ptr(), stats_BHT2.data_ptr(), *(x.data_ptr() for x in grads), *_numbers(q, seed, dropout),
    )  # fmt: skip
    return grads[0], grads[1], grads[2]


@_attend_backward.register_fake
def _attend_backward_shapes(grad_BTHK: Tensor, q_BTHK: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    del grad_BTHK
    return q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty(q_BTHK.shape)


def _save(ctx: FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, dropout = inputs
    ctx.save_for_backward(*cast("list[Tensor]", tensors), *output)
    ctx.dropout = dropout  # ty: ignore[missing-attribute]  the context carries what is set on it
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(value=False)


def _gradients(ctx: FunctionCtx, grad_BTHK: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_BTHK is None:
        return (None,) * 6
    *inputs, out, stats = ctx.saved_tensors  # ty: ignore[missing-attribute]
    return (*_attend_backward(grad_BTHK, *inputs, ctx.dropout, out, stats), None, None, None)  # ty: ignore


_attend.register_autograd(_gradients, setup_context=_save)


@register_flop_formula(torch.ops.ossicle.cpu_attention)
def _attend_flops(q_shape: Sequence[int], *_: object, **__: object) -> int:
    """Two products of scores' size."""
    rows, frames, heads, width = q_shape
    return 2 * 2 * rows * heads * frames**2 * width


@register_flop_formula(torch.ops.ossicle.cpu_attention_backward)
def _attend_backward_flops(grad_shape: Sequence[int], *_: object, **__: object) -> int:
    """Five: scores again, and for the gradients of weights, queries, keys and values."""
    rows, frames, heads, width = grad_shape
    return 5 * 2 * rows * heads * frames**2 * width


def _read(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors as the C++ reads them: of one type that it knows, the last dimension contiguous."""
    dtype = tensors[0].dtype
    if dtype not in SUFFIXES or any(x.dtype != dtype or x.shape != tensors[0].shape for x in tensors):
        told = ", ".join(f"{x.dtype} of {tuple(x.shape)}" for x in tensors)
        raise TypeError(f"tensors of one shape, float32 or bfloat16 all, are taken, not {told}")
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def _strides(*tensors: Tensor) -> ctypes.Array[ctypes.c_int64]:
    """Of rows, frames and heads of each."""
    strides = [stride for x in tensors for stride in x.stride()[:3]]
    return (ctypes.c_int64 * len(strides))(*strides)


def _numbers(q: Tensor, seed: Tensor, dropout: float) -> tuple[int | float, ...]:
    """What both ways are told after their tensors."""
    rows, frames, heads, width = q.shape
    return (
        seed.data_ptr(), threshold_of(dropout), 1 / (1 - dropout), 1 / math.sqrt(width),
        rows, frames, heads, width, torch.get_num_threads(),
    )  # fmt: skip
