"""The light gated recurrence on a CPU: C++ that is compiled at first use, called through its plain C interface."""

import ctypes
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ossicle.ops import native
from ossicle.ops.recurrence_loop import Run

SUFFIXES: Final = {torch.float32: "float", torch.float64: "double"}
CODE: Final = native.Source(Path(__file__).with_name("recurrence_cpu.cpp"))


def forward(gates_RBTW: Tensor, recurrent_RWU: Tensor, epsilon: float | None) -> Run:
    """What ``ossicle.ops.recurrence_loop.forward`` gives."""
    run = Run.empty(gates_RBTW, epsilon)
    _call("forward", (gates_RBTW, recurrent_RWU, *run), run.states_RBTU.shape, epsilon)
    return run


def backward(grad_RBTU: Tensor, run: Run, recurrent_RWU: Tensor, epsilon: float | None) -> tuple[Tensor, Tensor]:
    """What ``ossicle.ops.recurrence_loop.backward`` gives."""
    grad_gates_RBTW = torch.empty_like(run.active_RBTW)
    grad_products_RBTW = grad_gates_RBTW if epsilon is None else torch.empty_like(run.active_RBTW)
    tensors = (grad_RBTU, *run, recurrent_RWU, grad_gates_RBTW, grad_products_RBTW)
    _call("backward", tensors, run.states_RBTU.shape, epsilon)
    return grad_gates_RBTW, grad_products_RBTW


def _call(way: str, tensors: tuple[Tensor, ...], sizes: tuple[int, ...], epsilon: float | None) -> None:
    """Run one way of the recurrence; the last tensors are written.

    Args:
        way: ``forward`` or ``backward``.
        tensors: The function's arrays, in its order.
        sizes: Directions, rows, frames and units.
        epsilon: Of the layer norm, or None.
    """
    if not all(sizes):
        return
    function = getattr(CODE.library, f"light_gru_{way}_{SUFFIXES[tensors[0].dtype]}")
    function(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
        *map(ctypes.c_int64, sizes),
        ctypes.c_double(-1.0 if epsilon is None else epsilon),
        ctypes.c_int64(torch.get_num_threads()),
    )
