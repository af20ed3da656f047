"""Convolution of a waveform and the norm over time after it, folded into one matrix product for each row."""

from contextlib import nullcontext

import torch
from torch import Tensor

from ossicle.core.shapes import Bool, Float


def normalised_windows(
    waveform_BS: Float[Tensor, "B S"],
    weight_CK: Float[Tensor, "C K"],
    scale_C: Float[Tensor, " C"],
    shift_C: Float[Tensor, " C"],
    *,
    stride: int,
    num_frames: int,
    epsilon: float,
    valid_BT: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B Ts C"]:
    """A bank of filters over a waveform, each normalised over a row's frames to mean 0 and variance 1, then scaled.

    A filter's output is linear in the window that it sees, so its mean and variance over time follow from the windows'
    mean (K values) and covariance (K x K). The norm then becomes another weight and bias for each row: nothing of size
    (B, T, C) is read or written for it, and nothing but the windows is kept for its gradient.

    Args:
        waveform_BS: Samples, S divisible by the stride, shape (B, S).
        weight_CK: Filters of K taps.
        scale_C: Standard deviation of each channel after the norm.
        shift_C: Mean of each channel after the norm.
        stride: Samples between windows.
        num_frames: Windows that lie inside the waveform, T = (S' - K) // stride + 1 for S' real samples.
        epsilon: Added to variances.
        valid_BT: True where a frame is real, shape (B, T), or None where all are: statistics are those of real frames.

    Returns:
        Shape (B, S / stride, C); places from T on hold nothing of meaning.
    """
    rows, taps = len(waveform_BS), weight_CK.shape[1]
    padded_BS = torch.nn.functional.pad(waveform_BS, (0, taps))
    windows_BTK = padded_BS.unfold(1, taps, stride)[:, : waveform_BS.shape[1] // stride]
    device = waveform_BS.device.type
    mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if mixed else nullcontext():
        dtype = torch.promote_types(weight_CK.dtype, torch.float32)
        mean_BK, covariance_BKK = _moments(windows_BTK[:, :num_frames].to(dtype), valid_BT)
        wide_CK = weight_CK.to(dtype)
        mean_BC = mean_BK @ wide_CK.T
        variance_BC = torch.einsum("ck,bkl,cl->bc", wide_CK, covariance_BKK, wide_CK)
        gain_BC = scale_C.to(dtype) * torch.rsqrt(variance_BC.clamp(min=0) + epsilon)
        folded_BKC = wide_CK.T * gain_BC[:, None]
        bias_BC = shift_C.to(dtype) - mean_BC * gain_BC
    out_dtype = torch.get_autocast_dtype(device) if mixed else weight_CK.dtype
    products = windows_BTK.to(out_dtype), folded_BKC.to(out_dtype)
    return torch.baddbmm(bias_BC.to(out_dtype).view(rows, 1, -1), *products)


def _moments(windows_BTK: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean (B, K) and covariance (B, K, K) of the population of real windows."""
    if valid_BT is None:
        mean_BK = windows_BTK.mean(1)
        centred_BTK = windows_BTK - mean_BK[:, None]
        return mean_BK, centred_BTK.mT @ centred_BTK / windows_BTK.shape[1]
    count_B = valid_BT.sum(1).clamp(min=1).to(windows_BTK.dtype)
    real_BT1 = valid_BT[..., None]
    mean_BK = windows_BTK.masked_fill(~real_BT1, 0).sum(1) / count_B[:, None]
    centred_BTK = (windows_BTK - mean_BK[:, None]).masked_fill(~real_BT1, 0)
    return mean_BK, centred_BTK.mT @ centred_BTK / count_B[:, None, None]
