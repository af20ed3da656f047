"""Convolutions over time."""

import math
from typing import final

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float


@final
class ConvolutionBlock(nn.Module):
    """One layer of a waveform frontend: strided convolution, norm, GELU; no padding.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        kernel: Frames that a convolution sees.
        stride: Frames between convolutions.
        norm: Norm of (B, C, T), called with which frames are real.
        bias: Whether the convolution has a bias.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, *, norm: nn.Module, bias: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel, stride, bias=bias)
        self.norm = norm
        nn.init.kaiming_normal_(self.conv.weight)

    @override
    def forward(self, x_BCT: Float[Tensor, "B C T"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        """Convolve; ``valid_BT`` tells which of the frames that go out are real."""
        return functional.gelu(self.norm(self.conv(x_BCT), valid_BT))


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
        ConfigError: If the groups do not divide the width.
    """

    def __init__(self, dim: int, kernel: int = 128, groups: int = 16) -> None:
        super().__init__()
        if dim % groups:
            raise ConfigError(f"{groups} position groups do not divide the width {dim}", "set position_groups")
        conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * dim)))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        # One norm for each tap of the kernel, as in fairseq and all that descends from it.
        self.conv = parametrizations.weight_norm(conv, dim=2)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Positions of frames; frames that are not real must be zero."""
        position_BDT = self.conv(x_BTD.transpose(1, 2))[..., : x_BTD.shape[1]]
        return functional.gelu(position_BDT).transpose(1, 2)
