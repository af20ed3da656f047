"""Mamba's layer: a gated selective state space (arXiv 2312.00752)."""

import functools
import importlib
import importlib.util
import logging
import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.shapes import Float
from ossicle.layer.normalisation import at_least_float32
from ossicle.ops.selective_scan import selective_scan

STEP_MIN, STEP_MAX = 1e-3, 1e-1
"""Steps in time start between these (section 3.6)."""
_logger = logging.getLogger(__name__)


@functools.cache
def fused_scan(device: str) -> Callable[..., Tensor] | None:
    """mamba-ssm's kernel where it is there, and None where this package's serves; logged once with the reason."""
    if device != "cuda":
        problem = "mamba-ssm's kernel needs a CUDA device"
    elif importlib.util.find_spec("mamba_ssm") is None:
        problem = "mamba-ssm is not installed"
    else:
        _logger.info("selective scan on %s runs as mamba-ssm's kernel", device)
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    # On the meta device nothing runs: that a count of operations was taken is nobody's news.
    level = logging.DEBUG if device == "meta" else logging.INFO
    _logger.log(level, "selective scan on %s runs as this package's operation: %s", device, problem)
    return None


@torch.compiler.assume_constant_result
def _serves(device: str) -> bool:
    """Whether mamba-ssm's kernel runs on a device: known before anything is compiled."""
    return fused_scan(device) is not None


@torch.compiler.disable
def _fused(frames: tuple[Tensor, ...], rates_EN: Tensor, skip_E: Tensor, bias_E: Tensor) -> Tensor:
    """The scan with its skip and its gate by mamba-ssm's kernel; torch.compile goes around it."""
    scan = fused_scan(frames[0].device.type)
    assert scan is not None
    x_BET, step_BET, enter_BNT, leave_BNT, gate_BET = (tensor.mT.contiguous() for tensor in frames)
    more = {"z": gate_BET, "delta_bias": bias_E, "delta_softplus": True}
    return scan(x_BET, step_BET, rates_EN, enter_BNT, leave_BNT, skip_E, **more).mT


@final
class SelectiveStateSpace(nn.Module):
    """A causal map of frames (arXiv 2312.00752, figure 3): convolution, selective scan, gate.

    Parameters have the names and shapes of mamba-ssm's and transformers' layers, whose weights load as they are. The
    scan runs in float32 at least.

    Args:
        dim: Model width (D).
        state_dim: States of a channel (N).
        kernel: Frames of the causal convolution.
        expand: Width inside as a multiple of the model's.
    """

    def __init__(self, dim: int, *, state_dim: int = 16, kernel: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.inner = expand * dim
        self.rank = math.ceil(dim / 16)
        self.state_dim = state_dim
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv1d = nn.Conv1d(self.inner, self.inner, kernel, groups=self.inner, padding=kernel - 1)
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * state_dim, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.inner)
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        spread = math.log(STEP_MAX) - math.log(STEP_MIN)
        step_E = torch.exp(torch.rand(self.inner) * spread + math.log(STEP_MIN))
        with torch.no_grad():
            self.dt_proj.bias.copy_(step_E + torch.log(-torch.expm1(-step_E)))  # softplus undone
        rates_N = torch.arange(1, state_dim + 1, dtype=torch.get_default_dtype())
        self.A_log = nn.Parameter(rates_N.log().repeat(self.inner, 1))
        self.D = nn.Parameter(torch.ones(self.inner))
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Map frames; each takes from itself and from those before it."""
        x_BTE, gate_BTE = self.in_proj(x_BTD).chunk(2, -1)
        x_BTE = functional.silu(self.conv1d(x_BTE.mT)[..., : x_BTD.shape[1]].mT)
        step_BTR, enter_BTN, leave_BTN = self.x_proj(x_BTE).split([self.rank, self.state_dim, self.state_dim], -1)
        step_BTE = functional.linear(step_BTR, self.dt_proj.weight)
        said_BTE = self._scan(x_BTE, step_BTE, enter_BTN, leave_BTN, gate_BTE)
        return self.out_proj(said_BTE.to(x_BTE.dtype))

    def _scan(self, x_BTE: Tensor, step_BTE: Tensor, enter_BTN: Tensor, leave_BTN: Tensor, gate_BTE: Tensor) -> Tensor:
        """The scan with its skip and its gate."""
        rates_EN = -torch.exp(at_least_float32(self.A_log))
        skip_E, bias_E = at_least_float32(self.D), at_least_float32(self.dt_proj.bias)
        if _serves(x_BTE.device.type):
            return _fused((x_BTE, step_BTE, enter_BTN, leave_BTN, gate_BTE), rates_EN, skip_E, bias_E)
        step_BTE = functional.softplus(at_least_float32(step_BTE) + bias_E)
        said_BTE = selective_scan(x_BTE, step_BTE, rates_EN, enter_BTN, leave_BTN)
        return (said_BTE + skip_E * x_BTE) * functional.silu(gate_BTE)
