"""Whether own kernels serve an operation that has C++ for a CPU and Triton for a GPU: asked once a case, and logged."""

import importlib.util
import logging

import torch

from ossicle.ops.native import Source

_logger = logging.getLogger(__name__)


def serves(what: str, device: str, dtype: torch.dtype, code: Source, otherwise: str) -> bool:
    """Whether C++ serves on a CPU, or Triton on a GPU; logged, with the reason where neither does.

    Args:
        what: What is computed, for the log.
        device: Device type, such as ``cuda``.
        dtype: Type of what is computed.
        code: The C++.
        otherwise: What serves in their place, for the log.
    """
    problem = code.refusal if device == "cpu" else _triton_refusal(device, dtype)
    if problem is not None:
        _logger.warning("%s on %s runs as %s: %s", what, device, otherwise, problem)
        return False
    _logger.info("%s on %s runs as %s", what, device, "compiled C++" if device == "cpu" else "a Triton kernel")
    return True


def _triton_refusal(device: str, dtype: torch.dtype) -> str | None:
    """Why Triton kernels that compute in float32 cannot serve, or None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device != "cuda":
        return "the Triton kernel needs a CUDA device"
    return None if dtype == torch.float32 else f"the Triton kernel computes in float32, not in {dtype}"
