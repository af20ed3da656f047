"""Softmax with dropout in one pass over the scores, on a CPU: C++ that is compiled at first use.

torch has no fused attention with dropout on a CPU. Its plain form works in float32 whatever it is given, and passes
over the scores again and again: to scale, for a softmax that is safe, to draw a mask number by number, to apply it.
"""

import ctypes
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ossicle.ops import native
from ossicle.ops.dropout_hash import threshold_of

SUFFIXES: Final = {torch.float32: "float", torch.bfloat16: "bfloat16"}


def _declare(library: ctypes.CDLL) -> None:
    """Types of the arguments."""
    pointer, count, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    after = [pointer, count, real, real, count, count, count, count]
    for suffix in SUFFIXES.values():
        getattr(library, f"softmax_{suffix}").argtypes = [pointer] * 4 + after
        getattr(library, f"softmax_backward_{suffix}").argtypes = [pointer] * 4 + after


CODE: Final = native.Source(Path(__file__).with_name("softmax_cpu.cpp"), _declare)


@torch.library.custom_op("ossicle::softmax_dropout", mutates_args=(), device_types="cpu")
def softmax_dropout(  # noqa: PLR0917  operators of torch take their arguments in a row
    scores_RC: Tensor, valid_BC: Tensor | None, seed: Tensor, temperature: float, dropout: float, narrow: bool
) -> tuple[Tensor, Tensor]:
    """Weights of scores, and what dropout leaves of them.

    Args:
        scores_RC: Float32, contiguous.
        valid_BC: True where a column is real, one row for R / B rows of scores, or None where all are.
        seed: int64, shape ().
        temperature: What scores are multiplied by.
        dropout: Probability with which a weight is dropped.
        narrow: Whether weights are bfloat16 and not float32.

    Returns:
        softmax(temperature * scores), shape (R, C), and that after dropout; nothing, shape (0,), where dropout is 0.
    """
    _check(scores_RC, torch.float32)
    dtype = torch.bfloat16 if narrow else torch.float32
    weights_RC = torch.empty(scores_RC.shape, dtype=dtype)
    dropped_RC = _dropped_like(weights_RC, dropout)
    rows, columns = scores_RC.shape
    valid = None if valid_BC is None else valid_BC.contiguous()
    getattr(CODE.library, f"softmax_{SUFFIXES[dtype]}")(
        scores_RC.data_ptr(), None if valid is None else valid.data_ptr(), weights_RC.data_ptr(), _place(dropped_RC),
        seed.data_ptr(), threshold_of(dropout), 1 / (1 - dropout), temperature,
        rows, columns, rows if valid is None else rows // len(valid), torch.get_num_threads(),
    )  # fmt: skip
    return weights_RC, dropped_RC


@softmax_dropout.register_fake
def _softmax_dropout_shapes(
    scores_RC: Tensor, _valid: Tensor | None, _seed: Tensor, _temperature: float, dropout: float, narrow: bool
) -> tuple[Tensor, Tensor]:
    weights_RC = torch.empty_like(scores_RC, dtype=torch.bfloat16 if narrow else torch.float32)
    return weights_RC, _dropped_like(weights_RC, dropout)


@torch.library.custom_op("ossicle::softmax_dropout_backward", mutates_args=(), device_types="cpu")
def softmax_dropout_backward(
    weights_RC: Tensor, grad_RC: Tensor, seed: Tensor, temperature: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """What dropout leaves of weights, again, and the gradient of the scores.

    Args:
        weights_RC: Weights before dropout, contiguous.
        grad_RC: Gradient of the weights after dropout, of their type, contiguous.
        seed: int64, shape ().
        temperature: What scores are multiplied by.
        dropout: Probability with which a weight is dropped.
    """
    _check(weights_RC, weights_RC.dtype)
    _check(grad_RC, weights_RC.dtype)
    dropped_RC, grad_scores_RC = _dropped_like(weights_RC, dropout), torch.empty_like(weights_RC)
    rows, columns = weights_RC.shape
    getattr(CODE.library, f"softmax_backward_{SUFFIXES[weights_RC.dtype]}")(
        weights_RC.data_ptr(), grad_RC.data_ptr(), _place(dropped_RC), grad_scores_RC.data_ptr(),
        seed.data_ptr(), threshold_of(dropout), 1 / (1 - dropout), temperature,
        rows, columns, rows, torch.get_num_threads(),
    )  # fmt: skip
    return dropped_RC, grad_scores_RC


@softmax_dropout_backward.register_fake
def _softmax_dropout_backward_shapes(
    weights_RC: Tensor, _grad: Tensor, _seed: Tensor, _temperature: float, dropout: float
) -> tuple[Tensor, Tensor]:
    return _dropped_like(weights_RC, dropout), torch.empty_like(weights_RC)


def _dropped_like(weights_RC: Tensor, dropout: float) -> Tensor:
    """Where weights after dropout are written, or nothing where they are the weights themselves."""
    return torch.empty_like(weights_RC) if dropout else weights_RC.new_empty(0)


def _check(x_RC: Tensor, dtype: torch.dtype) -> None:
    """Refuse what the C++ would read as something else."""
    if x_RC.dtype != dtype or x_RC.dim() != 2 or not x_RC.is_contiguous():
        raise TypeError(f"a contiguous matrix of {dtype} is taken, not {x_RC.dtype} of {tuple(x_RC.shape)}")


def _place(x: Tensor) -> int | None:
    """A tensor's memory, or None where it has none."""
    return x.data_ptr() if x.numel() else None
