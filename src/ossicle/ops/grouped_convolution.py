"""Grouped convolutions over channels-last frames as one batched matrix product: wide kernels, few channels a group.

Convolution kernels of libraries do badly where a group has few channels and the kernel many taps, as in wav2vec 2.0's
positions (arXiv 2006.11477, section 2). Here a block of N adjacent outputs is one row of a product. It reads the frames
that the block sees, N + K - 1 of them, and its matrix holds the kernel N times, each shifted by a frame (a Toeplitz
matrix). That is (N + K - 1) / K times the arithmetic, for products N times as wide.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float
from ossicle.ops.autocast import autocast_dtype

_MOST = 64
_MOST_ON_CPU = 8
"""There arithmetic costs as much as copies: 16 took a fifth longer than 8, with 31 taps as with 128."""


def grouped_convolution(
    x_BTD: Float[Tensor, "B T D"], weight_OIK: Float[Tensor, "O I K"], groups: int, block: int | None = None
) -> Float[Tensor, "B T O"]:
    """Convolve frames at stride 1, so that output t is centred on frame t; zeros stand beyond the ends.

    Equals ``conv1d(padding=K // 2)`` cut to T frames: an even kernel sees one frame more on the left than on the right.

    Args:
        x_BTD: Frames, shape (B, T, D).
        weight_OIK: The weight of :class:`torch.nn.Conv1d`, I = D / groups, shape (O, I, K).
        groups: Groups of channels that do not mix.
        block: Outputs of a block (N); None takes what copies least, and on a CPU no more than 8.

    Returns:
        Shape (B, T, O), in autocast's type where that is on.

    Raises:
        ConfigError: The groups do not divide the channels.
    """
    channels, inner, taps = weight_OIK.shape
    if channels % groups or x_BTD.shape[2] != inner * groups:
        raise ConfigError(
            f"{groups} groups of {inner} do not make {x_BTD.shape[2]} channels of {channels}", "let them divide both"
        )
    device = x_BTD.device.type
    if device == "meta":  # what is counted there is the model's work, not what blocks do twice
        wide_BOT = functional.conv1d(x_BTD.mT, weight_OIK, padding=taps // 2, groups=groups)
        return wide_BOT[..., : x_BTD.shape[1]].mT
    dtype = autocast_dtype(device)
    if dtype is not None:
        x_BTD, weight_OIK = x_BTD.to(dtype), weight_OIK.to(dtype)
    if block is None:
        most = _MOST_ON_CPU if device == "cpu" else _MOST
        block = block_of(x_BTD.shape[0] * x_BTD.shape[1], channels // groups, most)
    # taps before channels: a window of frames and the kernel are then runs of adjacent values
    weight_GOKI = weight_OIK.view(groups, -1, inner, taps).transpose(2, 3)
    return _GroupedConvolution.apply(x_BTD, weight_GOKI, block)


def block_of(frames: int, channels: int, most: int = _MOST) -> int:
    """Outputs of a block at which the least is copied.

    Windows are copied ``frames / N`` times and kernels ``channels * N`` times, N + K - 1 frames each: their sum is
    least at the root of the ratio. Taken to the nearest power of two.

    Args:
        frames: Frames of the whole batch.
        channels: Channels that go out of a group.
        most: The most outputs that a block may have, a power of two.
    """
    best = 1
    while best < most and 2 * best * best * channels <= frames:  # 2 N^2 = N * 2N: halfway in the logarithm
        best *= 2
    return best


def _windows(x_BTD: Tensor, groups: int, block: int, taps: int, left: int) -> Tensor:
    """What each block sees, with ``left`` zeros before a row's first frame, and after its last what makes T outputs.

    Shape (G, B * blocks, (block + taps - 1) * I).
    """
    x_GBTI = x_BTD.view(*x_BTD.shape[:2], groups, -1).permute(2, 0, 1, 3)
    groups, rows, frames, inner = x_GBTI.shape
    blocks = -(-frames // block)
    right = blocks * block - frames + taps - 1 - left
    padded_GBTI = functional.pad(x_GBTI, (0, 0, left, right)).contiguous()
    length = padded_GBTI.shape[2] * inner
    seen = padded_GBTI.as_strided(
        (groups, rows, blocks, (block + taps - 1) * inner), (rows * length, length, block * inner, 1)
    )
    return seen.reshape(groups, rows * blocks, -1)


def _toeplitz(weight_GOKI: Tensor, block: int) -> Tensor:
    """The kernel at each place of a block, the last first, shape (G, O * block, (block + taps - 1) * I)."""
    groups, channels, taps, inner = weight_GOKI.shape
    padded = functional.pad(weight_GOKI, (0, 0, block - 1, block - 1)).contiguous()
    length = padded.shape[2] * inner
    shifted = padded.as_strided(
        (groups, channels, block, (block + taps - 1) * inner), (channels * length, length, inner, 1)
    )
    return shifted.reshape(groups, channels * block, -1)


def _convolve(windows: Tensor, weight_GOKI: Tensor, block: int, rows: int, frames: int) -> Tensor:
    """What the blocks' windows give, shape (B, T, O)."""
    groups, channels = weight_GOKI.shape[:2]
    out = torch.bmm(windows, _toeplitz(weight_GOKI, block).mT)
    out_BNMGO = out.view(groups, rows, -(-frames // block), channels, block).flip(-1).permute(1, 2, 4, 0, 3)
    return out_BNMGO.reshape(rows, -1, groups * channels)[:, :frames]


def _weight_gradient(windows: Tensor, grad_BTO: Tensor, weight_GOKI: Tensor, block: int) -> Tensor:
    """The kernel's gradient, shape (G, O, K, I): that of the Toeplitz matrix, summed along its diagonals."""
    groups, channels, taps, inner = weight_GOKI.shape
    rows, frames = grad_BTO.shape[:2]
    padded = functional.pad(grad_BTO, (0, 0, 0, -frames % block))
    grad = padded.view(rows, -1, block, groups, channels).permute(3, 0, 1, 4, 2).flip(-1)
    toeplitz = torch.bmm(grad.reshape(groups, windows.shape[1], -1).mT, windows).contiguous()
    seen = block + taps - 1
    diagonals = toeplitz.as_strided(
        (groups, channels, block, taps * inner),
        (channels * block * seen * inner, block * seen * inner, (seen - 1) * inner, 1),
        (block - 1) * inner,
    )
    return diagonals.sum(2).view(groups, channels, taps, inner)  # torch sums bfloat16 in float32


class _GroupedConvolution(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: FunctionCtx, x_BTD: Tensor, weight_GOKI: Tensor, block: int) -> Tensor:
        groups, _, taps, _ = weight_GOKI.shape
        rows, frames = x_BTD.shape[:2]
        windows = _windows(x_BTD, groups, block, taps, taps // 2)
        ctx.save_for_backward(windows, weight_GOKI)
        ctx.block = block  # ty: ignore[missing-attribute]  the context carries what is set on it
        return _convolve(windows, weight_GOKI, block, rows, frames)

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        windows, weight_GOKI = ctx.saved_tensors  # ty: ignore[missing-attribute]
        block = ctx.block  # ty: ignore[missing-attribute]
        wants_x, wants_weight, _ = ctx.needs_input_grad  # ty: ignore[missing-attribute]
        groups, _, taps, _ = weight_GOKI.shape
        rows, frames = grads[0].shape[:2]
        x_grad = None
        if wants_x:  # the same with taps in reverse and the ways in and out exchanged
            seen = _windows(grads[0], groups, block, taps, taps - 1 - taps // 2)
            x_grad = _convolve(seen, weight_GOKI.flip(2).transpose(1, 3), block, rows, frames)
        weight_grad = _weight_gradient(windows, grads[0], weight_GOKI, block) if wants_weight else None
        return x_grad, weight_grad, None
