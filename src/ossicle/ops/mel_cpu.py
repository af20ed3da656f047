"""Energies of mel bands on a CPU in one pass over a waveform: C++ that is compiled at first use.

torch lays every frame out, and passes over all of them to centre, emphasise, weigh, pad, transform, square and sum.
"""

import ctypes
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ossicle.ops import native

PREEMPHASIS: Final = 0.97
"""How much of the sample before is taken from each: Kaldi's."""


def _declare(library: ctypes.CDLL) -> None:
    """Types of the arguments."""
    library.mel_energies.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_double] + [ctypes.c_int64] * 8


CODE: Final = native.Source(Path(__file__).with_name("mel_cpu.cpp"), _declare)


@torch.library.custom_op("ossicle::mel_energies", mutates_args=(), device_types="cpu")
def mel_energies(waveform_BS: Tensor, window_K: Tensor, filters_FC: Tensor, stride: int) -> Tensor:
    """Power under each filter of each frame, which loses its mean and is pre-emphasised and windowed before (Kaldi's).

    Args:
        waveform_BS: Samples in [-1, 1], float32, shape (B, S).
        window_K: Float32, shape (K,): the weight of each sample of a frame.
        filters_FC: Float32, shape (F, C): the weight of each bin in each band; a transform has 2 (F - 1) points, a
            power of two and K or more.
        stride: Samples between frames.

    Returns:
        Float32, shape (B, T, C).

    Raises:
        TypeError: Something is not float32 of its shape.
    """
    shapes = [tuple(x.shape) for x in (waveform_BS, window_K, filters_FC) if x.dtype == torch.float32]
    if [len(shape) for shape in shapes] != [2, 1, 2]:
        raise TypeError(f"a waveform (B, S), a window (K) and filters (F, C) of float32 are taken, not {shapes}")
    (rows, samples), (kernel,), (bins, bands) = shapes
    half = bins - 1
    if half < 1 or half & (half - 1) or kernel > 2 * half:
        raise TypeError(f"{bins} bins are no transform of a power of two and {kernel} points or more")
    out_BTC = _out(waveform_BS, kernel, stride, bands)
    waveform, window, filters = waveform_BS.contiguous(), window_K.contiguous(), filters_FC.contiguous()
    CODE.library.mel_energies(
        waveform.data_ptr(), window.data_ptr(), filters.data_ptr(), out_BTC.data_ptr(),
        PREEMPHASIS, rows, samples, out_BTC.shape[1], kernel, stride, half, bands, torch.get_num_threads(),
    )  # fmt: skip
    return out_BTC


@mel_energies.register_fake
def _mel_energies_shape(waveform_BS: Tensor, window_K: Tensor, filters_FC: Tensor, stride: int) -> Tensor:
    return _out(waveform_BS, window_K.shape[0], stride, filters_FC.shape[1])


def _out(waveform_BS: Tensor, kernel: int, stride: int, bands: int) -> Tensor:
    """Where energies are written."""
    rows, samples = waveform_BS.shape
    frames = (samples - kernel) // stride + 1 if samples >= kernel else 0
    return waveform_BS.new_empty((rows, frames, bands))
