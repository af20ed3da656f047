"""Fourier transforms over time: of rows of any length in one batch, and convolutions as long as the row."""

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from typing_extensions import override

from ossicle.core.shapes import Bool, Float, Int


def fast_length(least: int) -> int:
    """The smallest number from ``least`` on whose only prime factors are 2, 3 and 5: transforms of it are fast."""
    if least <= 1:
        return 1
    best = 1 << (least - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            # The power of two that lifts this product to the least.
            product = three << max(0, (-(-least // three) - 1).bit_length())
            best = min(best, product)
            three *= 3
        five *= 5
    return best


def fourier_mix(
    x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None, *, ortho: bool = False
) -> Float[Tensor, "B T D"]:
    """The real part of the Fourier transform over frames and channels (arXiv 2105.03824, equation 3).

    Each row is transformed over its own length: what a padded row gives at its real frames is exactly what the row
    gives alone. Half of the channels' spectrum is computed, and the other half mirrored from it. O(T log T).

    Args:
        x_BTD: Frames, shape (B, T, D).
        valid_BT: True where a frame is real: the first frames of each row. None where every frame is.
        ortho: Divide by the root of frames times channels, which keeps a row's energy before the real part is taken.

    Returns:
        Shape (B, T, D), in float32 at least.
    """
    x_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
    num_frames, dim = x_BTD.shape[1:]
    lengths_B = valid_BT.sum(1).clamp(min=1) if valid_BT is not None else None
    if valid_BT is not None:
        x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
    spectrum_BTF = torch.fft.rfft(x_BTD, dim=-1)
    if lengths_B is None:
        half_BTF = torch.fft.fft(spectrum_BTF, dim=1).real
        mirrored_BTF = half_BTF.flip(1).roll(1, 1)
    else:
        half_BTF = fourier_of_lengths(spectrum_BTF, lengths_B).real
        places_T = torch.arange(num_frames, device=x_BTD.device)
        sources_BT = (lengths_B[:, None] - places_T) % lengths_B[:, None]
        mirrored_BTF = half_BTF.gather(1, sources_BT[..., None].expand_as(half_BTF))
    # The transform of real numbers at (-t, -d) is the conjugate of that at (t, d).
    rest_BTF = mirrored_BTF[..., 1 : dim - half_BTF.shape[-1] + 1].flip(-1)
    mixed_BTD = torch.cat([half_BTF, rest_BTF], -1)
    if not ortho:
        return mixed_BTD
    if lengths_B is None:
        return mixed_BTD / math.sqrt(num_frames * dim)
    return mixed_BTD * torch.rsqrt((lengths_B * dim).to(mixed_BTD.dtype))[:, None, None]


def fourier_of_lengths(x_BTC: Tensor, lengths_B: Int[Tensor, " B"]) -> Tensor:
    """The Fourier transform of each row over its own length, by Bluestein's chirp (doi 10.1109/TAU.1970.1162132).

    With w = exp(-2 pi i / n): k t = (k^2 + t^2 - (k - t)^2) / 2 makes the transform over n frames a convolution with
    w^(-j^2 / 2), which one transform of a fixed size computes for rows of all lengths.

    Args:
        x_BTC: Complex frames, zero behind each row's length, shape (B, T, C).
        lengths_B: Frames of each row (n), at least 1.

    Returns:
        Shape (B, T, C); what stands behind a row's length is undefined.
    """
    num_frames = x_BTC.shape[1]
    size = fast_length(2 * num_frames - 1)
    places_N = torch.arange(size, device=x_BTC.device)
    lags_N = torch.minimum(places_N, size - places_N)
    # Squares modulo 2 n, in integers: the angles of late frames stay exact.
    twice_B1 = 2 * lengths_B[:, None].long()
    angles_BN = (lags_N.square() % twice_B1).double() * (2 * math.pi / twice_B1.double())
    chirp_BN = torch.polar(torch.ones_like(angles_BN), angles_BN).to(x_BTC.dtype)
    down_BT1 = chirp_BN[:, :num_frames, None].conj()
    spectrum_BNC = torch.fft.fft(x_BTC * down_BT1, size, dim=1) * torch.fft.fft(chirp_BN, dim=1)[..., None]
    return torch.fft.ifft(spectrum_BNC, dim=1)[:, :num_frames] * down_BT1


def long_convolution(
    x_BTD: Float[Tensor, "B T D"], there_TD: Float[Tensor, "T D"], back_TD: Float[Tensor, "T D"] | None = None
) -> Float[Tensor, "B T D"]:
    """Convolve each channel with a filter as long as the row, towards both sides of a frame: O(T log T).

    y_t = sum over s <= t of there_{t-s} x_s + sum over s > t of back_{s-t} x_s, zeros beyond the row.

    Args:
        x_BTD: Frames, shape (B, T, D).
        there_TD: What frames at and before one bring to it, by their distance, shape (T, D).
        back_TD: What frames behind one bring to it, by their distance, shape (T, D), of which distance 0 is not used;
            None for a causal convolution.

    Returns:
        Shape (B, T, D), in float32 at least.
    """
    dtype = torch.promote_types(x_BTD.dtype, torch.float32)
    num_frames, dim = x_BTD.shape[1:]
    size = fast_length(2 * num_frames - 1)
    gap_ND = there_TD.new_zeros(size - 2 * num_frames + 1, dim, dtype=dtype)
    behind_ND = there_TD.new_zeros(num_frames - 1, dim, dtype=dtype) if back_TD is None else back_TD[1:].flip(0)
    filter_ND = torch.cat([there_TD.to(dtype), gap_ND, behind_ND.to(dtype)])
    return _CircularConvolution.apply(x_BTD.to(dtype), filter_ND)


class _CircularConvolution(torch.autograd.Function):
    """Circular convolution with a filter of N frames, of the first T frames; the rest of the N are zeros.

    Autograd would go back through each real transform by a complex one of twice the work: what is real stays real here,
    the ways back being convolutions with what is turned around.
    """

    @staticmethod
    @override
    def forward(ctx: FunctionCtx, x_BTD: Tensor, filter_ND: Tensor) -> Tensor:
        size = len(filter_ND)
        x_BDF, filter_DF = _spectrum(x_BTD, size), _spectrum(filter_ND, size)
        ctx.save_for_backward(x_BDF, filter_DF)
        ctx.size = size  # ty: ignore[missing-attribute]  the context carries what is set on it
        return _from_spectrum(x_BDF * filter_DF, size)[:, : x_BTD.shape[1]]

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_BDF, filter_DF = ctx.saved_tensors  # ty: ignore[missing-attribute]
        size = ctx.size  # ty: ignore[missing-attribute]
        wants_x, wants_filter = ctx.needs_input_grad  # ty: ignore[missing-attribute]
        grad_BDF = _spectrum(grads[0], size)
        x_grad = _from_spectrum(grad_BDF * filter_DF.conj(), size)[:, : grads[0].shape[1]] if wants_x else None
        filter_grad = _from_spectrum((grad_BDF * x_BDF.conj()).sum(0), size) if wants_filter else None
        return x_grad, filter_grad


def _spectrum(x_BTD: Float[Tensor, "*rows T D"], size: int) -> Tensor:
    """Each channel's transform over time, (..., D, F): along neighbours in memory it is twice as fast on a CPU."""
    return torch.fft.rfft(x_BTD.mT, size)


def _from_spectrum(x_BDF: Tensor, size: int) -> Float[Tensor, "*rows T D"]:
    return torch.fft.irfft(x_BDF, size).mT
