"""Convolution of a waveform, the norm over time after it, and GELU: one matrix product for each row, and no more.

On a GPU the product, its bias and GELU are one Triton kernel, and nothing of size (B, T, C) is kept for the gradient:
the way back makes the product again, which has ten terms. On a CPU that would cost more than it saves.
"""

from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from ossicle.core.shapes import Bool, Float
from ossicle.ops.autocast import autocast_dtype
from ossicle.ops.triton_kernels import serves

_SPAN = 1024
"""Windows whose products are summed at once."""


def normalised_filters(
    waveform_BS: Float[Tensor, "B S"],
    weight_CK: Float[Tensor, "C K"],
    scale_C: Float[Tensor, " C"],
    shift_C: Float[Tensor, " C"],
    *,
    stride: int,
    num_frames: int,
    epsilon: float,
    valid_BT: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B K C"], Float[Tensor, "B C"]]:
    """Filters whose output over a waveform is that of a bank normalised over a row's frames to mean 0 and variance 1.

    A filter's output is linear in the window that it sees, so its mean and variance over time follow from the windows'
    mean (K values) and covariance (K x K). The norm then becomes another weight and bias for each row: nothing of size
    (B, T, C) is read or written for it.

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
        Filters of each row (B, K, C) and what is added to their output (B, C), in the type that products have.
    """
    windows_BTK = _windows(waveform_BS, weight_CK.shape[1], stride)
    device = waveform_BS.device.type
    mixed = autocast_dtype(device)
    with nullcontext() if mixed is None else torch.autocast(device, enabled=False):
        dtype = torch.promote_types(weight_CK.dtype, torch.float32)
        mean_BK, covariance_BKK = _moments(windows_BTK[:, :num_frames].to(dtype), valid_BT)
        wide_CK = weight_CK.to(dtype)
        mean_BC = mean_BK @ wide_CK.T
        variance_BC = torch.einsum("ck,bkl,cl->bc", wide_CK, covariance_BKK, wide_CK)
        gain_BC = scale_C.to(dtype) * torch.rsqrt(variance_BC.clamp(min=0) + epsilon)
        folded_BKC = wide_CK.T * gain_BC[:, None]
        bias_BC = shift_C.to(dtype) - mean_BC * gain_BC
    out_dtype = weight_CK.dtype if mixed is None else mixed
    return folded_BKC.to(out_dtype), bias_BC.to(out_dtype)


def activated_windows(
    waveform_BS: Float[Tensor, "B S"], filters_BKC: Float[Tensor, "B K C"], bias_BC: Float[Tensor, "B C"], stride: int
) -> Float[Tensor, "B Ts C"]:
    """GELU of filters over a waveform, which gets no gradient.

    Args:
        waveform_BS: Samples, S divisible by the stride, shape (B, S).
        filters_BKC: Filters of each row.
        bias_BC: What is added to their output.
        stride: Samples between windows.

    Returns:
        Shape (B, S / stride, C), of the filters' type; windows that reach past the waveform see zeros there.
    """
    what = "the first convolution, its norm and GELU"
    if waveform_BS.device.type == "cuda" and serves(what, (filters_BKC.dtype,)):
        with torch.autocast("cuda", enabled=False):
            return _forward(waveform_BS.detach(), filters_BKC, bias_BC, stride)
    return activated_windows_reference(waveform_BS, filters_BKC, bias_BC, stride)


def activated_windows_reference(
    waveform_BS: Float[Tensor, "B S"], filters_BKC: Float[Tensor, "B K C"], bias_BC: Float[Tensor, "B C"], stride: int
) -> Float[Tensor, "B Ts C"]:
    """:func:`activated_windows` in plain torch, differentiated by autograd: what the kernels are held to."""
    windows_BTK = _windows(waveform_BS, filters_BKC.shape[1], stride)
    return functional.gelu(torch.baddbmm(bias_BC[:, None], windows_BTK.to(filters_BKC.dtype), filters_BKC))


def _windows(waveform_BS: Tensor, taps: int, stride: int) -> Tensor:
    """What each place sees, (B, S / stride, K), as a view."""
    return functional.pad(waveform_BS, (0, taps)).unfold(1, taps, stride)[:, : waveform_BS.shape[1] // stride]


def _moments(windows_BTK: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean (B, K) and covariance (B, K, K) of the population of real windows."""
    if valid_BT is None:
        mean_BK = windows_BTK.mean(1)
        centred_BTK = windows_BTK - mean_BK[:, None]
        return mean_BK, _gram(centred_BTK) / windows_BTK.shape[1]
    count_B = valid_BT.sum(1).clamp(min=1).to(windows_BTK.dtype)
    real_BT1 = valid_BT[..., None]
    mean_BK = windows_BTK.masked_fill(~real_BT1, 0).sum(1) / count_B[:, None]
    centred_BTK = (windows_BTK - mean_BK[:, None]).masked_fill(~real_BT1, 0)
    return mean_BK, _gram(centred_BTK) / count_B[:, None, None]


def _gram(x_BTK: Tensor) -> Tensor:
    """Sums over time of the products of every two terms, (B, K, K): over spans, and then over these.

    One product a row has few outputs and a very long sum, which leaves most of a GPU idle.
    """
    spans = x_BTK.shape[1] // _SPAN
    spans_BNTK = x_BTK[:, : spans * _SPAN].unflatten(1, (spans, _SPAN))
    rest_BTK = x_BTK[:, spans * _SPAN :]
    return (spans_BNTK.mT @ spans_BNTK).sum(1) + rest_BTK.mT @ rest_BTK


@torch.library.custom_op("ossicle::activated_windows", mutates_args=())
def _forward(waveform_BS: Tensor, filters_BKC: Tensor, bias_BC: Tensor, stride: int) -> Tensor:
    # Only here: triton is slow to import, and CPU runs need none of it.
    from ossicle.ops import windows_triton  # noqa: PLC0415

    return windows_triton.forward(waveform_BS, filters_BKC, bias_BC, stride)


@_forward.register_fake
def _forward_shape(waveform_BS: Tensor, filters_BKC: Tensor, bias_BC: Tensor, stride: int) -> Tensor:  # noqa: ARG001
    return filters_BKC.new_empty(len(waveform_BS), waveform_BS.shape[1] // stride, filters_BKC.shape[2])


@torch.library.custom_op("ossicle::activated_windows_backward", mutates_args=())
def _backward(
    grad_BTC: Tensor, waveform_BS: Tensor, filters_BKC: Tensor, bias_BC: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    from ossicle.ops import windows_triton  # noqa: PLC0415

    return windows_triton.backward(grad_BTC.contiguous(), waveform_BS, filters_BKC, bias_BC, stride)


@_backward.register_fake
def _backward_shapes(
    grad_BTC: Tensor,  # noqa: ARG001
    waveform_BS: Tensor,  # noqa: ARG001
    filters_BKC: Tensor,
    bias_BC: Tensor,
    stride: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(filters_BKC), torch.empty_like(bias_BC)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:  # noqa: ARG001
    """Keep what the way back needs: nothing that has frames and channels."""
    *tensors, stride = inputs
    ctx.save_for_backward(*tensors)
    setattr(ctx, "stride", stride)  # noqa: B010


def _gradient(ctx: torch.autograd.function.FunctionCtx, grad_BTC: Tensor) -> tuple[None, Tensor, Tensor, None]:
    """Gradients of filters and bias."""
    saved = cast("tuple[Tensor, Tensor, Tensor]", getattr(ctx, "saved_tensors"))  # noqa: B009
    grad_filters_BKC, grad_bias_BC = _backward(grad_BTC, *saved, getattr(ctx, "stride"))  # noqa: B009
    return None, grad_filters_BKC, grad_bias_BC, None


_forward.register_autograd(_gradient, setup_context=_save)


@register_flop_formula(torch.ops.ossicle.activated_windows)
def _forward_flops(
    waveform_shape: tuple[int, ...], filters_shape: tuple[int, ...], _bias: object, stride: int, **_: object
) -> int:
    """Two operations for each multiply-accumulate of the product: B T K C."""
    rows, taps, channels = filters_shape
    return 2 * rows * (waveform_shape[1] // stride) * taps * channels


@register_flop_formula(torch.ops.ossicle.activated_windows_backward)
def _backward_flops(
    grad_shape: tuple[int, ...], _waveform: object, filters_shape: tuple[int, ...], *_: object, **__: object
) -> int:
    """The product again, and the filters' gradient."""
    rows, frames, channels = grad_shape
    return 2 * 2 * rows * frames * filters_shape[1] * channels
