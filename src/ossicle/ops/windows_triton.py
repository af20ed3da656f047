# ty: ignore[invalid-argument-type]  kernels are compiled from their text, for which types are those on the device
"""Filters over a waveform with bias and GELU on a GPU: one Triton kernel there, and one back that makes it all again.

The bias is one filter tap more, which sees ones: so its output, and its gradient, come out of the same product.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossicle.ops.gelu_triton import gelu, gelu_slope

FORWARD_BLOCK_T: Final = 64
BACKWARD_BLOCK_T: Final = 32
BLOCK_C: Final = 128
TILES_PER_PROGRAM: Final = 32
"""Tiles of frames that a program of the way back sums over before its sums are written."""


def forward(waveform_BS: Tensor, filters_BKC: Tensor, bias_BC: Tensor, stride: int) -> Tensor:
    """What ``ossicle.ops.windows.activated_windows_reference`` gives."""
    rows, taps, channels = filters_BKC.shape
    frames = waveform_BS.shape[1] // stride
    out_BTC = filters_BKC.new_empty(rows, frames, channels)
    _forward_kernel[(triton.cdiv(frames, FORWARD_BLOCK_T), rows)](
        waveform_BS.contiguous(),
        _with_bias(filters_BKC, bias_BC),
        out_BTC,
        waveform_BS.shape[1],
        frames,
        STRIDE=stride,
        TAPS=taps,
        CHANNELS=channels,
        BLOCK_T=FORWARD_BLOCK_T,
        **tiles(taps, channels),
    )
    return out_BTC


def backward(
    grad_BTC: Tensor, waveform_BS: Tensor, filters_BKC: Tensor, bias_BC: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    """Gradients of filters (B, K, C) and bias (B, C): sums of each program, then of all, in one order."""
    rows, frames, channels = grad_BTC.shape
    taps = filters_BKC.shape[1]
    sizes = tiles(taps, channels)
    parts = triton.cdiv(frames, BACKWARD_BLOCK_T * TILES_PER_PROGRAM)
    sums_BPKC = torch.empty(rows, parts, taps + 1, channels, dtype=torch.float32, device=grad_BTC.device)
    _backward_kernel[(triton.cdiv(channels, sizes["BLOCK_C"]), parts, rows)](
        grad_BTC,
        waveform_BS.contiguous(),
        _with_bias(filters_BKC, bias_BC),
        sums_BPKC,
        waveform_BS.shape[1],
        frames,
        STRIDE=stride,
        TAPS=taps,
        CHANNELS=channels,
        TILES=TILES_PER_PROGRAM,
        BLOCK_T=BACKWARD_BLOCK_T,
        **sizes,
    )
    sums_BKC = sums_BPKC.sum(1).to(filters_BKC.dtype)
    return sums_BKC[:, :-1].contiguous(), sums_BKC[:, -1].contiguous()


def _with_bias(filters_BKC: Tensor, bias_BC: Tensor) -> Tensor:
    return torch.cat((filters_BKC, bias_BC[:, None]), dim=1)


def tiles(taps: int, channels: int) -> dict[str, int | str]:
    """Sizes of the tiles, and TF32 products where the user lets torch's own take them."""
    return {
        "BLOCK_K": max(16, triton.next_power_of_2(taps + 1)),  # the fewest that a tensor core takes
        "BLOCK_C": max(16, min(BLOCK_C, triton.next_power_of_2(channels))),
        "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        "num_warps": 4,
    }


@triton.jit
def _window(  # noqa: PLR0917
    waveform: tl.tensor,
    row: tl.tensor,
    t: tl.tensor,
    k: tl.tensor,
    samples: tl.tensor,
    STRIDE: tl.constexpr,
    TAPS: tl.constexpr,
) -> tl.tensor:
    """What each frame sees, and after it a one: (BLOCK_T, BLOCK_K)."""
    place = t[:, None] * STRIDE + k[None, :]
    seen = (k < TAPS)[None, :] & (place < samples)
    heard = tl.load(waveform + row * samples + place, mask=seen, other=0.0)
    return tl.where((k == TAPS)[None, :], 1.0, heard)


@triton.jit
def _forward_kernel(  # noqa: PLR0917
    waveform: tl.tensor,
    filters: tl.tensor,
    out: tl.tensor,
    samples: tl.tensor,
    frames: tl.tensor,
    STRIDE: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    row = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)
    dtype = filters.dtype.element_ty
    window = _window(waveform, row, t, k, samples, STRIDE, TAPS).to(dtype)
    for first in range(0, CHANNELS, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        place = (row * (TAPS + 1) + k[:, None]) * CHANNELS + c[None, :]
        weight = tl.load(filters + place, mask=(k <= TAPS)[:, None] & (c < CHANNELS)[None, :], other=0.0)
        x = tl.dot(window, weight, input_precision=PRECISION)
        there = (t < frames)[:, None] & (c < CHANNELS)[None, :]
        tl.store(out + (row * frames + t[:, None]) * CHANNELS + c[None, :], gelu(x, dtype), mask=there)


@triton.jit
def _backward_kernel(  # noqa: PLR0917
    grad: tl.tensor,
    waveform: tl.tensor,
    filters: tl.tensor,
    sums: tl.tensor,
    samples: tl.tensor,
    frames: tl.tensor,
    STRIDE: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    row = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1)
    k = tl.arange(0, BLOCK_K)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = (k <= TAPS)[:, None] & (c < CHANNELS)[None, :]
    dtype = filters.dtype.element_ty
    weight = tl.load(filters + (row * (TAPS + 1) + k[:, None]) * CHANNELS + c[None, :], mask=known, other=0.0)
    total = tl.zeros((BLOCK_K, BLOCK_C), dtype=tl.float32)
    for tile in range(TILES):
        t = (part * TILES + tile) * BLOCK_T + tl.arange(0, BLOCK_T)
        window = _window(waveform, row, t, k, samples, STRIDE, TAPS).to(dtype)
        x = tl.dot(window, weight, input_precision=PRECISION)
        there = (t < frames)[:, None] & (c < CHANNELS)[None, :]
        arrived = tl.load(grad + (row * frames + t[:, None]) * CHANNELS + c[None, :], mask=there, other=0.0)
        onward = (arrived.to(tl.float32) * gelu_slope(x, dtype)).to(dtype)
        total = tl.dot(tl.trans(window), onward, total, input_precision=PRECISION)
    place = ((row * tl.num_programs(1) + part) * (TAPS + 1) + k[:, None]) * CHANNELS + c[None, :]
    tl.store(sums + place, total, mask=known)
