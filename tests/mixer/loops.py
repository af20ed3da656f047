"""Mixers by loops in float64, and what their tests share."""

import cmath
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ossicle.layer.multi_head import MultiHead
from ossicle.layer.selective_state_space import SelectiveStateSpace
from ossicle.meter.flops import count_macs
from ossicle.mixer.convolution import Convolution

Array = NDArray[np.float64]
M = TypeVar("M", bound=nn.Module)


def array(x: torch.Tensor) -> Array:
    """A tensor's values in float64."""
    return x.detach().double().numpy()


def check_padded_rows(mixer: nn.Module, dim: int, loop: Callable[[Array], Array]) -> None:
    """Each of three padded rows is what a loop makes of the row alone, in float64."""
    torch.manual_seed(0)
    x_BTD, lengths = torch.randn(3, 9, dim, dtype=torch.float64), [9, 4, 1]
    out_BTD = mixer(x_BTD, torch.arange(9) < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        expected = loop(array(x_BTD[row, :length]))
        np.testing.assert_allclose(array(out_BTD[row, :length]), expected, atol=1e-12, rtol=1e-12)


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


def attention(part: MultiHead, x_TD: Array) -> Array:
    """Softmax attention of one utterance (arXiv 1706.03762, equation 1), a pair of frames at a time: (T, D)."""
    q_THK, k_THK, v_THK = (mapped(one, x_TD, part.num_heads) for one in (part.query, part.key, part.value))
    root = math.sqrt(q_THK.shape[-1])
    mixed_THK = softmax_means(lambda head, query, key: q_THK[query, head] @ k_THK[key, head] / root, v_THK)
    return mapped(part.out, mixed_THK.reshape(len(x_TD), -1))[:, 0]


def convolution(part: Convolution, x_TD: Array) -> Array:
    """A gate and a light, dynamic or depthwise convolution of one utterance (arXiv 1901.10430, section 3): (T, D)."""
    frames, dim = x_TD.shape
    gate_TE = mapped(part.gate, x_TD)[:, 0]
    gated_TD = gate_TE[:, :dim] / (1 + np.exp(-gate_TE[:, dim:]))
    mixed_TD = np.zeros_like(gated_TD)
    for t in range(frames):
        for c in range(dim):
            head = c * part.num_heads // dim
            if part.taps is not None:
                logits = (array(part.taps.weight) @ gated_TD[t]).reshape(part.num_heads, part.kernel)[head]
            else:
                assert part.weight is not None
                logits = array(part.weight)[c if part.kind == "depthwise" else head]
            kernel = logits if part.kind == "depthwise" else np.exp(logits) / np.exp(logits).sum()
            for k in range(part.kernel):
                if 0 <= (s := t + k - part.kernel // 2) < frames:
                    mixed_TD[t, c] += kernel[k] * gated_TD[s, c]
    return mapped(part.out, mixed_TD)[:, 0]


def state_space(part: SelectiveStateSpace, x_TD: Array) -> Array:
    """One direction of Mamba on one utterance (arXiv 2312.00752, algorithm 2 and equations 2 and 4): (T, D).

    Rates are discretised as they are, exp(Delta A), and inputs as in the authors' figure: Delta B x.
    """
    taps = part.conv1d.kernel_size[0]
    kernel_EK, shift_E = array(part.conv1d.weight)[:, 0], array(part.conv1d.bias)
    rates_EN = -np.exp(array(part.A_log))
    state_EN = np.zeros_like(rates_EN)
    entering, out = [], []
    for x_D in x_TD:
        u_E, gate_E = np.split(array(part.in_proj.weight) @ x_D, 2)
        entering.append(u_E)
        seen = reversed(entering[-taps:])  # from this frame back: the kernel's last tap is the frame's own
        u_E = _silu(shift_E + sum(kernel_EK[:, taps - 1 - back] * past_E for back, past_E in enumerate(seen)))
        said = array(part.x_proj.weight) @ u_E
        step_R, enter_N, leave_N = np.split(said, [part.rank, part.rank + part.state_dim])
        step_E = np.log1p(np.exp(array(part.dt_proj.weight) @ step_R + array(part.dt_proj.bias)))
        for e, n in np.ndindex(*state_EN.shape):
            fade = math.exp(step_E[e] * rates_EN[e, n])
            state_EN[e, n] = fade * state_EN[e, n] + step_E[e] * enter_N[n] * u_E[e]
        y_E = state_EN @ leave_N + array(part.D) * u_E
        out.append(array(part.out_proj.weight) @ (y_E * _silu(gate_E)))
    return np.stack(out)


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def fourier(x_TD: Array) -> Array:
    """The real part of the Fourier transform over frames and channels (arXiv 2105.03824, equation 3), a pair at a time.

    Shape (T, D).
    """
    frames, dim = x_TD.shape
    out_TD = np.zeros_like(x_TD)
    for t, d in np.ndindex(frames, dim):
        for s, c in np.ndindex(frames, dim):
            turn = t * s / frames + d * c / dim
            out_TD[t, d] += (x_TD[s, c] * cmath.exp(-2j * math.pi * turn)).real
    return out_TD


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
