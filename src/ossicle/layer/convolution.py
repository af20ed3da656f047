"""Convolutions over time."""

import math
from abc import ABC, abstractmethod
from typing import final

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.ops.grouped_convolution import grouped_convolution
from ossicle.ops.strided_convolution import strided_convolution
from ossicle.ops.windows import activated_windows, normalised_filters


class WaveConvolution(nn.Module, ABC):
    """One layer of a waveform frontend, without padding, on channels-last frames.

    What goes in and out has places beyond its frames, so that every stride divides: see
    :mod:`ossicle.ops.strided_convolution`.
    """

    @abstractmethod
    def forward(
        self, x_BTC: Float[Tensor, "B T C"], num_frames: int, valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B Ts O"]:
        """Convolve.

        Args:
            x_BTC: Frames, T divisible by the stride, shape (B, T, C).
            num_frames: How many places of what goes out are frames.
            valid_BT: Which of these frames are real, or None where all are.

        Returns:
            Shape (B, T / stride, O); places from ``num_frames`` on hold nothing of meaning.
        """


@final
class ConvolutionBlock(WaveConvolution):
    """Strided convolution, norm of each frame, activation.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        kernel: Frames that a convolution sees.
        stride: Frames between convolutions, at most the kernel.
        norm: Norm over the last axis.
        bias: Whether the convolution has a bias.
        activation: What follows the norm; None for GELU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        *,
        norm: nn.Module,
        bias: bool,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = wave_convolution(in_channels, out_channels, kernel, stride, bias=bias)
        self.activation = nn.GELU() if activation is None else activation
        self.norm = norm
        self.stride = stride

    @override
    def forward(
        self, x_BTC: Float[Tensor, "B T C"], num_frames: int, valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B Ts O"]:
        out_BTC = strided_convolution(x_BTC, self.conv.weight, self.stride)
        if self.conv.bias is not None:
            out_BTC = out_BTC + self.conv.bias.to(out_BTC.dtype)
        return self.activation(self.norm(out_BTC))


@final
class NormalisedConvolution(WaveConvolution):
    """The first layer of wav2vec 2.0's base model: convolution, norm of each channel over a row's real frames, GELU.

    The norm (group norm with one channel a group) is folded into the convolution: see :mod:`ossicle.ops.windows`. It
    takes the mean away, and with it a bias of the convolution, which therefore changes nothing.

    Args:
        channels: Channels that go out.
        kernel: Samples that a convolution sees.
        stride: Samples between convolutions, at most the kernel.
        bias: Whether the convolution has a bias, for weights that come with one.
    """

    def __init__(self, channels: int, kernel: int, stride: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = wave_convolution(1, channels, kernel, stride, bias=bias)
        self.norm = nn.GroupNorm(channels, channels)
        self.stride = stride

    @override
    def forward(
        self, x_BTC: Float[Tensor, "B T C"], num_frames: int, valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B Ts O"]:
        waveform_BS = x_BTC.squeeze(2)
        filters_BKC, bias_BC = normalised_filters(
            waveform_BS,
            self.conv.weight.squeeze(1),
            self.norm.weight,
            self.norm.bias,
            stride=self.stride,
            num_frames=num_frames,
            epsilon=self.norm.eps,
            valid_BT=valid_BT,
        )
        return activated_windows(waveform_BS, filters_BKC, bias_BC, self.stride)


def wave_convolution(in_channels: int, out_channels: int, kernel: int, stride: int, *, bias: bool) -> nn.Conv1d:
    """The weights of a layer, by He's initialisation.

    Raises:
        ConfigError: The stride is larger than the kernel, and would leave frames unheard.
    """
    if stride > kernel:
        raise ConfigError(
            f"frontend.convolutions: a stride of {stride} passes over frames that a kernel of {kernel} does not see",
            "give a stride of at most the kernel",
        )
    conv = nn.Conv1d(in_channels, out_channels, kernel, stride, bias=bias)
    nn.init.kaiming_normal_(conv.weight)
    return conv


@final
class TapNorm(nn.Module):
    """Weight norm (arXiv 1602.07868, equation 2) with one norm for each tap of a kernel, as in fairseq and its heirs.

    As a parametrisation of a weight (O, I, K), with the keys and values of torch's own ``weight_norm(dim=2)``, whose
    CUDA kernels take 20 times as long over the last dimension as the weight's bytes do.
    """

    def forward(self, gain_11K: Float[Tensor, "1 1 K"], direction_OIK: Float[Tensor, "O I K"]) -> Tensor:
        """The weight."""
        return direction_OIK * (gain_11K / direction_OIK.square().sum((0, 1), keepdim=True).sqrt())

    def right_inverse(self, weight_OIK: Float[Tensor, "O I K"]) -> tuple[Tensor, Tensor]:
        """Gain and direction of a weight."""
        return weight_OIK.square().sum((0, 1), keepdim=True).sqrt(), weight_OIK


def check_position(dim: int, kernel: int, groups: int) -> None:
    """Refuse a position convolution that cannot be.

    Args:
        dim: Model width (D).
        kernel: Frames that the convolution sees.
        groups: Groups of channels that do not mix.

    Raises:
        ConfigError: The groups do not divide the width, or the kernel sees no frame.
    """
    if groups < 1 or dim % groups:
        raise ConfigError(f"{groups} position groups do not divide the width {dim}", "set position_groups")
    if kernel < 1:
        raise ConfigError(f"encoder.position_kernel={kernel} sees no frame", "give 1 or more")


@final
class ConvolutionPosition(nn.Module):
    """Relative positions from a wide grouped convolution with weight norm and GELU (arXiv 2006.11477, section 2).

    The caller adds the result to its input. Output t is centred on input t; an even kernel sees one frame more on the
    left than on the right.

    Args:
        dim: Model width (D).
        kernel: Frames that the convolution sees.
        groups: Groups of channels that do not mix.

    Raises:
        ConfigError: If the groups do not divide the width, or the kernel sees no frame.
    """

    def __init__(self, dim: int, kernel: int = 128, groups: int = 16) -> None:
        super().__init__()
        check_position(dim, kernel, groups)
        conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * dim)))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        parametrize.register_parametrization(conv, "weight", TapNorm())
        self.conv = conv

    @override
    def forward(
        self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Positions of frames; frames that are not real must be zero."""
        del valid_BT  # the one convolution sees those zeros
        return self.first(x_BTD)

    def first(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Positions of frames that may be narrower, from the first of the groups, as many as make their width."""
        dim = x_BTD.shape[-1]
        weight_OIK = self.conv.weight  # computed anew, with its norm, whenever it is read
        position_BTD = grouped_convolution(x_BTD, weight_OIK[:dim], dim // weight_OIK.shape[1])
        if self.conv.bias is not None:
            position_BTD = position_BTD + self.conv.bias[:dim].to(position_BTD.dtype)
        return functional.gelu(position_BTD)


@final
class DeepConvolutionPosition(nn.Module):
    """Relative positions from several narrow grouped convolutions, each with a norm without weights and GELU.

    What data2vec takes in the place of one wide convolution (arXiv 2202.03555, section 4.2: five of 19 frames). The
    caller adds the result to its input.

    Args:
        dim: Model width (D).
        kernel: Frames that each convolution sees.
        groups: Groups of channels that do not mix.
        num_layers: Convolutions.

    Raises:
        ConfigError: If the groups do not divide the width, or a kernel sees no frame.
    """

    def __init__(self, dim: int, kernel: int = 19, groups: int = 16, num_layers: int = 5) -> None:
        super().__init__()
        check_position(dim, kernel, groups)
        self.layers = nn.ModuleList(PositionLayer(dim, kernel, groups) for _ in range(num_layers))

    @override
    def forward(
        self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Positions of frames; frames that are not real must be zero, and are made so again between layers.

        Args:
            x_BTD: Frames, shape (B, T, D).
            valid_BT: True where a frame is real, or None where every frame is.
        """
        for number, layer in enumerate(self.layers):
            if number and valid_BT is not None:
                x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
            x_BTD = layer(x_BTD)
        return x_BTD


@final
class PositionLayer(nn.Module):
    """One layer of :class:`DeepConvolutionPosition`, with its arguments."""

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Convolution, norm without weights, GELU."""
        convolved_BTD = self.conv(x_BTD.transpose(1, 2))[..., : x_BTD.shape[1]].transpose(1, 2)
        return functional.gelu(functional.layer_norm(convolved_BTD, convolved_BTD.shape[-1:]))
