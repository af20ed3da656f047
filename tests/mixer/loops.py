"""Attention by loops in float64, and what tests of mixers share."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ossicle.meter.flops import count_macs

Array = NDArray[np.float64]
M = TypeVar("M", bound=nn.Module)


def array(x: torch.Tensor) -> Array:
    """A tensor's values in float64."""
    return x.detach().double().numpy()


def mapped(linear: nn.Linear, x_TD: Array, num_heads: int = 1) -> Array:
    """A linear map of frames, cut into heads: (T, H, K)."""
    out_TD = x_TD @ array(linear.weight).T + array(linear.bias)
    return out_TD.reshape(len(x_TD), num_heads, -1)


def softmax_means(
    score: Callable[[int, int, int], float],
    v_THK: Array,
    seen: Callable[[int, int], bool] = lambda _query, _key: True,
) -> Array:
    """Means of values by the softmax of ``score(head, query, key)`` over the keys that are seen, frame by frame."""
    frames, heads, _ = v_THK.shape
    out_THK = np.zeros_like(v_THK)
    for head in range(heads):
        for query in range(frames):
            keys = [key for key in range(frames) if seen(query, key)]
            scores = np.array([score(head, query, key) for key in keys])
            weights = np.exp(scores - scores.max())
            out_THK[query, head] = weights / weights.sum() @ v_THK[keys, head]
    return out_THK


def noisy(module: M, std: float = 0.3) -> M:
    """The module in evaluation with weights that leave nothing at its start."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval()


def num_parameters(*modules: nn.Module) -> int:
    """Parameters of modules that may share some."""
    return sum(parameter.numel() for parameter in nn.ModuleList(modules).parameters())


def macs(build: Callable[[], nn.Module], rows: int, frames: int, dim: int) -> int:
    """Multiply-accumulates of a mixer's forward pass, counted by torch on the meta device."""
    with torch.device("meta"):
        mixer, x_BTD = build().eval(), torch.empty(rows, frames, dim)
    return count_macs(lambda: mixer(x_BTD))


def dependence(module: nn.Module, frames: int, dim: int) -> NDArray[np.bool_]:
    """Which frame that goes in (column) has a gradient to which that comes out (row), (T, T)."""
    x_TD = torch.randn(1, frames, dim, dtype=torch.float64, requires_grad=True)
    out_BTD = module.double()(x_TD)
    rows = []
    for frame in range(frames):
        (grad_BTD,) = torch.autograd.grad(out_BTD[0, frame].square().sum(), x_TD, retain_graph=True)
        rows.append(grad_BTD[0].abs().sum(-1) > 0)
    return torch.stack(rows).numpy()
