"""Convolutions that lower the frame rate, and the clock that they leave."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError


class Shortening(nn.Module):
    """Convolutions with padding on both sides, each followed by layer norm and ReLU (arXiv 2201.10207, section 3.3).

    Args:
        in_dim: Width that comes in.
        convolutions: Channels, kernel (odd) and stride of each.

    Raises:
        ConfigError: A kernel is even, and no frame would be its centre.
    """

    def __init__(self, in_dim: int, convolutions: Sequence[Sequence[int]]) -> None:
        super().__init__()
        layers = []
        for channels, kernel, stride in convolutions:
            if kernel % 2 == 0:
                raise ConfigError(f"a kernel of {kernel} has no centre", "give odd kernels")
            layers.append(nn.Conv1d(in_dim, channels, kernel, stride, padding=kernel // 2))
            in_dim = channels
        self.convolutions = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels, _, _ in convolutions)
        self.strides = [int(stride) for _, _, stride in convolutions]

    @override
    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Frames at the lower rate, and which of them are real: those whose centre is."""
        for convolution, norm, stride in zip(self.convolutions, self.norms, self.strides, strict=True):
            if valid_BT is not None:
                x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
                valid_BT = valid_BT[:, ::stride]
            x_BTD = functional.relu(norm(convolution(x_BTD.transpose(1, 2)).transpose(1, 2)))
        return x_BTD, valid_BT


def shortened_clock(clock: FrameClock, convolutions: Sequence[Sequence[int]]) -> FrameClock:
    """The clock after such convolutions."""
    for _, kernel, stride in convolutions:
        clock = clock.then(kernel, stride, kernel // 2, kernel // 2)
    return clock
