"""Dropout on a CPU in one pass: C++ that is compiled at first use. torch's own draws a mask number by number."""

import ctypes
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from typing_extensions import override

from ossicle.ops import native
from ossicle.ops.dropout_hash import threshold_of

SUFFIXES: Final = {torch.float32: "float", torch.bfloat16: "bfloat16"}


def _declare(library: ctypes.CDLL) -> None:
    """Types of the arguments."""
    pointer, count, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    for suffix in SUFFIXES.values():
        getattr(library, f"dropout_{suffix}").argtypes = [pointer] * 3 + [count, real] + [count] * 3


CODE: Final = native.Source(Path(__file__).with_name("dropout_cpu.cpp"), _declare)


class Dropout(torch.autograd.Function):
    """Dropout (arXiv 1207.0580) decided by a hash of the place: see :mod:`ossicle.ops.dropout_hash`."""

    @staticmethod
    @override
    def forward(ctx: FunctionCtx, x: Tensor, seed: Tensor, dropout: float) -> Tensor:
        """What is left of float32 or bfloat16 of at least one axis."""
        ctx.save_for_backward(seed)
        ctx.dropout = dropout  # ty: ignore[missing-attribute]
        return dropped(x, seed, dropout)

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, of which the same is left."""
        (seed,) = ctx.saved_tensors  # ty: ignore[missing-attribute]
        return dropped(grads[0], seed, ctx.dropout), None, None  # ty: ignore[missing-attribute]


def dropped(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """What dropout leaves: the last axis are the columns of :func:`~ossicle.ops.dropout_hash.keep_mask`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    columns = x.shape[-1]
    rows = x.numel() // max(columns, 1)
    getattr(CODE.library, f"dropout_{SUFFIXES[x.dtype]}")(
        x.data_ptr(), out.data_ptr(), seed.data_ptr(), threshold_of(dropout), 1 / (1 - dropout),
        rows, columns, torch.get_num_threads(),
    )  # fmt: skip
    return out


@torch.library.custom_op("ossicle::dropout", mutates_args=(), device_types="cpu")
def compiled(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """:class:`Dropout` as a compiler sees it, which makes a hash in plain torch number by number."""
    return dropped(x, seed, dropout)


@compiled.register_fake
def _shape(x: Tensor, _seed: Tensor, _dropout: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:  # noqa: ARG001
    _, seed, dropout = inputs
    ctx.save_for_backward(seed)
    ctx.dropout = dropout  # ty: ignore[missing-attribute]


def _gradient(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
    (seed,) = ctx.saved_tensors  # ty: ignore[missing-attribute]
    return compiled(grad, seed, ctx.dropout), None, None  # ty: ignore[missing-attribute]


compiled.register_autograd(_gradient, setup_context=_save)
