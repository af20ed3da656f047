"""Whether this package's Triton kernels can serve a case on a GPU: asked once a case, and logged then."""

import functools
import importlib.util
import logging
from typing import Final

import torch

_logger = logging.getLogger(__name__)

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)


def serves(what: str, dtypes: tuple[torch.dtype, ...], problem: str | None = None) -> bool:
    """Whether kernels serve; with the arguments of :func:`refusal`, which logs the answer.

    In a compiled graph nothing can be logged, and triton is there.
    """
    if torch.compiler.is_compiling():
        return problem is None and set(dtypes) <= set(DTYPES)
    return refusal(what, dtypes, problem) is None


@functools.cache
def refusal(what: str, dtypes: tuple[torch.dtype, ...], problem: str | None = None) -> str | None:
    """Why kernels cannot serve, or None where they can.

    Args:
        what: What they compute, for the log.
        dtypes: Types of what they read.
        problem: What else speaks against them, or None.
    """
    types = " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))
    if importlib.util.find_spec("triton") is None:
        problem = "triton is not installed"
    elif not set(dtypes) <= set(DTYPES):
        problem = f"they do not compute in {types}"
    if problem is None:
        _logger.info("%s run as one Triton kernel (%s)", what, types)
    else:
        _logger.warning("%s run in plain torch, not as a Triton kernel: %s", what, problem)
    return problem
