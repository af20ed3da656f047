"""Tables of mel features: the only place where torchaudio is imported.

torchaudio refuses some builds of torch at import, so the import happens when a table is first asked for. torch.compile
asks while it traces and takes the table for a constant, one of each kind in a graph: a second is refused.
"""

import functools

import torch
from torch import Tensor


@torch.compiler.assume_constant_result
def mel_filters(num_mels: int, fft_size: int, rate_hz: int, *, low_hz: float, high_hz: float, device: str) -> Tensor:
    """Kaldi's triangular mel filters, (bins, num_mels); bins = fft_size // 2 + 1.

    Args:
        num_mels: Filters.
        fft_size: Points of the Fourier transform.
        rate_hz: Samples a second.
        low_hz: Lower edge of the first filter.
        high_hz: Upper edge of the last filter; 0 or less counts from half the rate.
        device: Where the table lives.
    """
    return _mel_filters(num_mels, fft_size, rate_hz, (low_hz, high_hz), device)


@torch.compiler.assume_constant_result
def cosine_transform(num_cepstra: int, num_mels: int, lifter: float, device: str) -> Tensor:
    """Orthonormal DCT-II followed by Kaldi's cepstral lifter, (num_mels, num_cepstra).

    Args:
        num_cepstra: Cepstral coefficients.
        num_mels: Mel filters.
        lifter: Kaldi's Q: coefficient i is scaled by 1 + Q/2 sin(pi i / Q).
        device: Where the table lives.
    """
    return _cosine_transform(num_cepstra, num_mels, lifter, device)


@torch.compiler.assume_constant_result
def povey_window(size: int, device: str) -> Tensor:
    """Kaldi's default window, a Hann window to the power 0.85, (size,)."""
    return _povey_window(size, device)


@functools.cache
def _mel_filters(num_mels: int, fft_size: int, rate_hz: int, edges_hz: tuple[float, float], device: str) -> Tensor:
    from torchaudio.compliance.kaldi import get_mel_banks  # noqa: PLC0415  refused by some builds of torch

    with torch.inference_mode(mode=False), torch.device("cpu"):
        filters, _ = get_mel_banks(num_mels, fft_size, float(rate_hz), *edges_hz, 100.0, -500.0, 1.0)
        # Kaldi gives the highest bin no weight and leaves it out.
        padded = torch.nn.functional.pad(filters, (0, 1)).T.contiguous()
    return padded.to(device)


@functools.cache
def _cosine_transform(num_cepstra: int, num_mels: int, lifter: float, device: str) -> Tensor:
    from torchaudio.functional import create_dct  # noqa: PLC0415  refused by some builds of torch

    with torch.inference_mode(mode=False), torch.device("cpu"):
        order = torch.arange(num_cepstra, dtype=torch.float32)
        scale = 1 + lifter / 2 * torch.sin(torch.pi * order / lifter)
        table = create_dct(num_cepstra, num_mels, norm="ortho") * scale
    return table.to(device)


@functools.cache
def _povey_window(size: int, device: str) -> Tensor:
    with torch.inference_mode(mode=False), torch.device("cpu"):
        window = torch.hann_window(size, periodic=False).pow(0.85)
    return window.to(device)
