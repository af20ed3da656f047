"""The recurrence of selective state spaces on a CPU: C++ that is compiled at first use."""

import ctypes
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ossicle.ops import native
from ossicle.ops.selective_scan_run import SEGMENT, Inputs, Run

SUFFIXES: Final = {torch.float32: "float", torch.float64: "double"}
_LANES: Final = 64  # kLanes
CODE: Final = native.Source(Path(__file__).with_name("selective_scan_cpu.cpp"))


def forward(inputs: Inputs) -> Run:
    """What ``ossicle.ops.selective_scan`` asks for on the way there."""
    run = Run.empty(inputs)
    _call("forward", (*inputs.state_first(), *run))
    return run


def backward(grad_BTE: Tensor, inputs: Inputs, starts_BSNE: Tensor) -> Inputs:
    """Gradients of the inputs."""
    x_BTE, _, rates_EN, enter_BTN, _ = inputs
    grads = torch.empty_like(x_BTE), torch.empty_like(x_BTE)
    # What is summed over channels has a part for each block of them, what is summed over frames one for each row.
    rates_parts_BNE = x_BTE.new_empty(len(x_BTE), *rates_EN.T.shape)
    parts_2CBTN = x_BTE.new_empty(2, -(-x_BTE.shape[2] // _LANES), *enter_BTN.shape)
    _call("backward", (grad_BTE, *inputs.state_first(), starts_BSNE, *grads, rates_parts_BNE, *parts_2CBTN.unbind()))
    return Inputs(*grads, rates_parts_BNE.sum(0).T.contiguous(), *(parts_CBTN.sum(0) for parts_CBTN in parts_2CBTN))


def _call(way: str, tensors: tuple[Tensor, ...]) -> None:
    """Run one way of the scan; the last tensors are written.

    Args:
        way: ``forward`` or ``backward``.
        tensors: The function's arrays, in its order: the first is (B, T, E), and the one of two dimensions (N, E).
    """
    rows, frames, channels = tensors[0].shape
    states = next(tensor.shape[0] for tensor in tensors if tensor.dim() == 2)
    if not rows * frames * channels * states:
        return
    function = getattr(CODE.library, f"selective_scan_{way}_{SUFFIXES[tensors[0].dtype]}")
    sizes = (rows, frames, channels, states, SEGMENT, torch.get_num_threads())
    function(*(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors), *map(ctypes.c_int64, sizes))
