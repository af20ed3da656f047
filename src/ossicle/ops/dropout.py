"""Dropout, by the fastest way that a device has."""

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.ops import dropout_cpu
from ossicle.ops.dropout_hash import PLACES, draw_seed, draw_seeds, keep_places


def dropout(x: Tensor, probability: float) -> Tensor:
    """Dropout (arXiv 1207.0580): each value is 0 with a probability, and else divided by that of being kept.

    Args:
        x: Values of any shape.
        probability: In [0, 1).
    """
    if not probability:
        return x
    if _native(x):
        drop = dropout_cpu.compiled if torch.compiler.is_compiling() else dropout_cpu.Dropout.apply
        return drop(x, draw_seed(), probability)
    if torch.compiler.is_compiling() and x.numel() < PLACES:
        return _compiled(x, probability)
    return functional.dropout(x, probability)


def _compiled(x: Tensor, probability: float) -> Tensor:
    """What a compiler fuses into the operations around it: a hash of each place, in place of Philox's ten rounds.

    The gradient makes the hash again: two words are kept, and no mask.
    """
    kept = keep_places(draw_seeds(x.device), x.numel(), probability).view(x.shape)
    return torch.where(kept, x * (1 / (1 - probability)), 0)


def _native(x: Tensor) -> bool:
    """Whether own C++ serves a tensor: one of a CPU, in float32 or bfloat16."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.ndim > 0
    return plain and x.dtype in dropout_cpu.SUFFIXES and _refusal() is None


@torch.compiler.assume_constant_result
def _refusal() -> str | None:
    """Why own C++ does not serve here, or None; logged when it is first asked, and a constant of a compiled graph."""
    return dropout_cpu.CODE.refusal_of("dropout is torch's own")
