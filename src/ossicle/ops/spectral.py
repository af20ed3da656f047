"""Log-mel and MFCC features as Kaldi computes them, framed without padding and with an exact clock."""

import math

import torch
from torch import Tensor

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float, Int
from ossicle.ops import mel_cpu
from ossicle.ops.filterbank import cosine_transform, mel_filters, povey_window
from ossicle.ops.framing import slice_frames
from ossicle.ops.precision import without_autocast

LIFTER = 22.0
DELTA_REACH = 2


def spectral_clock(*, window_ms: float = 25.0, hop_ms: float = 10.0, rate_hz: int = 16_000) -> FrameClock:
    """The clock of spectral frames: one window every hop, no padding.

    Args:
        window_ms: Length of a frame.
        hop_ms: Distance between frames.
        rate_hz: Samples a second.

    Raises:
        ConfigError: If window or hop is no whole number of samples.
    """
    return FrameClock(_whole(window_ms, rate_hz, "window_ms"), _whole(hop_ms, rate_hz, "hop_ms"), rate_hz=rate_hz)


def log_mel(
    waveform_BS: Float[Tensor, "B S"],
    *,
    num_mels: int = 80,
    window_ms: float = 25.0,
    hop_ms: float = 10.0,
    rate_hz: int = 16_000,
    low_hz: float = 20.0,
    high_hz: float = 0.0,
) -> Float[Tensor, "B T C"]:
    """Log energies of mel bands as Kaldi's fbank computes them (snip_edges, no dither), shape (B, T, num_mels).

    Each frame loses its mean, is pre-emphasised (0.97) and weighted by the Povey window; its power spectrum is summed
    under triangles that are even on the mel scale; the natural logarithm is floored at float32's epsilon.

    Args:
        waveform_BS: Samples in [-1, 1], shape (B, S).
        num_mels: Mel bands.
        window_ms: Length of a frame.
        hop_ms: Distance between frames.
        rate_hz: Samples a second.
        low_hz: Lower edge of the first band.
        high_hz: Upper edge of the last band; 0 or less counts from half the rate.

    Raises:
        ConfigError: If window or hop is no whole number of samples.
    """
    clock = spectral_clock(window_ms=window_ms, hop_ms=hop_ms, rate_hz=rate_hz)
    size, device = _fft_size(clock.kernel_samples), str(waveform_BS.device)
    window_K = povey_window(clock.kernel_samples, device)
    filters_FC = mel_filters(num_mels, size, rate_hz, low_hz=low_hz, high_hz=high_hz, device=device)
    # Powers span ten decades: bf16 products would cost the quiet bands their detail.
    with without_autocast(waveform_BS):
        energies = mel_cpu.mel_energies if _native(waveform_BS) else mel_energies_reference
        energies_BTC = energies(waveform_BS.float(), window_K, filters_FC, clock.stride_samples)
        return energies_BTC.clamp(min=torch.finfo(torch.float32).eps).log()


def mel_energies_reference(
    waveform_BS: Float[Tensor, "B S"],
    window_K: Float[Tensor, " kernel"],
    filters_FC: Float[Tensor, "bins C"],
    stride: int,
) -> Float[Tensor, "B T C"]:
    """:func:`~ossicle.ops.mel_cpu.mel_energies` in plain torch, on every device and with gradients."""
    frames = slice_frames(waveform_BS, len(window_K), stride)
    frames = frames - frames.mean(-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], -1)
    return power_spectrum((frames - mel_cpu.PREEMPHASIS * previous) * window_K) @ filters_FC


def _native(waveform_BS: Tensor) -> bool:
    """Whether own C++ serves a waveform: one of a CPU that nothing is differentiated by."""
    differentiated = torch.is_grad_enabled() and waveform_BS.requires_grad
    return (
        type(waveform_BS) is Tensor and waveform_BS.device.type == "cpu" and not differentiated and _refusal() is None
    )


@torch.compiler.assume_constant_result
def _refusal() -> str | None:
    """Why own C++ does not serve here, or None; logged when it is first asked, and a constant of a compiled graph."""
    return mel_cpu.CODE.refusal_of("mel bands are torch's products")


def power_spectrum(frames_BTK: Float[Tensor, "*batch kernel"]) -> Float[Tensor, "*batch bins"]:
    """Squared magnitudes of each frame's Fourier transform, zero-padded to the next power of two."""
    size = _fft_size(frames_BTK.shape[-1])
    if frames_BTK.numel() == 0:  # MKL refuses an empty batch
        return frames_BTK.new_empty((*frames_BTK.shape[:-1], size // 2 + 1))
    spectrum = torch.fft.rfft(frames_BTK, n=size)
    return spectrum.real.square() + spectrum.imag.square()


def mfcc(
    waveform_BS: Float[Tensor, "B S"],
    *,
    num_cepstra: int = 13,
    num_mels: int = 23,
    window_ms: float = 25.0,
    hop_ms: float = 10.0,
    rate_hz: int = 16_000,
    lengths_B: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B T C"]:
    """Kaldi's MFCC with first and second differences, shape (B, T, 3 * num_cepstra): 39 as HuBERT clusters them.

    The clock is :func:`spectral_clock` of the same window and hop; differences reach two frames to each side, and
    repeat the first and last frame beyond the ends (arXiv 2106.07447, section 4.2).

    Args:
        waveform_BS: Samples in [-1, 1], shape (B, S). Rows are whole: the differences at a row's end see its end.
        num_cepstra: Coefficients, the zeroth among them.
        num_mels: Mel bands beneath.
        window_ms: Length of a frame.
        hop_ms: Distance between frames: 20 gives 50 frames a second.
        rate_hz: Samples a second.
        lengths_B: Where rows are padded, the samples of each that are real: the differences at a row's end see that
            end, and what follows it means nothing. Each row has a frame at least.

    Raises:
        ConfigError: If window or hop is no whole number of samples.
    """
    mels = log_mel(waveform_BS, num_mels=num_mels, window_ms=window_ms, hop_ms=hop_ms, rate_hz=rate_hz)
    table = cosine_transform(num_cepstra, num_mels, LIFTER, str(mels.device))
    with without_autocast(mels):
        cepstra = mels @ table
    if lengths_B is None:
        first = differences(cepstra)
        return torch.cat([cepstra, first, differences(first)], -1)
    clock = spectral_clock(window_ms=window_ms, hop_ms=hop_ms, rate_hz=rate_hz)
    last_B = (lengths_B.to(cepstra.device) - clock.kernel_samples).div(clock.stride_samples, rounding_mode="floor")
    held_BT1 = torch.minimum(torch.arange(cepstra.shape[1], device=cepstra.device), last_B[:, None])[..., None]
    cepstra = cepstra.gather(1, held_BT1.expand_as(cepstra))
    first = differences(cepstra)
    first = first.gather(1, held_BT1.expand_as(first))
    return torch.cat([cepstra, first, differences(first)], -1)


def differences(x_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """Regression slope over two frames to each side, the ends repeated: the delta features of speech recognisers."""
    num_frames = x_BTC.shape[1]
    if num_frames == 0:
        return x_BTC
    ends = (x_BTC[:, :1].expand(-1, DELTA_REACH, -1), x_BTC[:, -1:].expand(-1, DELTA_REACH, -1))
    padded = torch.cat([ends[0], x_BTC, ends[1]], 1)
    reaches = range(1, DELTA_REACH + 1)
    slopes = [
        reach * (padded.narrow(1, DELTA_REACH + reach, num_frames) - padded.narrow(1, DELTA_REACH - reach, num_frames))
        for reach in reaches
    ]
    return torch.stack(slopes).sum(0) / (2 * sum(reach * reach for reach in reaches))


def _fft_size(window_samples: int) -> int:
    return 1 << (window_samples - 1).bit_length()


def _whole(duration_ms: float, rate_hz: int, name: str) -> int:
    samples = duration_ms * rate_hz / 1000
    if samples < 1 or not math.isclose(samples, round(samples), abs_tol=1e-6):
        raise ConfigError(f"{name}={duration_ms} is {samples} samples at {rate_hz} Hz", f"{name} must be whole samples")
    return round(samples)
