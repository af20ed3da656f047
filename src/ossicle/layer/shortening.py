"""Convolutions that lower the frame rate, and the clock that they leave."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.layer.dropout import Dropout


class Shortening(nn.Module):
    """Convolutions with padding on both sides, each followed by layer norm and ReLU (arXiv 2201.10207, section 3.3).

    Args:
        in_dim: Width that comes in.
        convolutions: Channels, kernel (odd) and stride of each.
        gated: Whether each is followed by a gated linear unit instead, as in Fast-HuBERT (arXiv 2309.13860, in its
            authors' code): it then makes twice its channels, of which one half opens the other.
        dropout: Dropout after each activation. The last convolution's output has none where it has no activation.
        last_activation: Whether the last convolution has a ReLU too; it ends in its norm otherwise, as in SPIRAL's
            authors' code.

    Raises:
        ConfigError: A kernel is even, and no frame would be its centre; or the last gate is left out.
    """

    def __init__(
        self,
        in_dim: int,
        convolutions: Sequence[Sequence[int]],
        *,
        gated: bool = False,
        dropout: float = 0.0,
        last_activation: bool = True,
    ) -> None:
        super().__init__()
        if gated and not last_activation:
            raise ConfigError("gated convolutions without the last gate", "set last_activation=true, or gated=false")
        layers = []
        for channels, kernel, stride in convolutions:
            if kernel % 2 == 0:
                raise ConfigError(f"a kernel of {kernel} has no centre", "give odd kernels")
            layers.append(nn.Conv1d(in_dim, channels * (1 + gated), kernel, stride, padding=kernel // 2))
            in_dim = channels
        self.convolutions = nn.ModuleList(layers)
        self.gated = gated
        self.norms = nn.ModuleList(() if gated else (nn.LayerNorm(channels) for channels, _, _ in convolutions))
        self.dropout = Dropout(dropout)
        self.num_active = len(layers) - (not last_activation)
        self.strides = [int(stride) for _, _, stride in convolutions]

    @override
    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Frames at the lower rate, and which of them are real: those whose centre is."""
        for place, (convolution, stride) in enumerate(zip(self.convolutions, self.strides, strict=True)):
            if valid_BT is not None:
                x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
                valid_BT = valid_BT[:, ::stride]
            x_BTD = convolution(x_BTD.transpose(1, 2)).transpose(1, 2)
            if not self.gated:
                x_BTD = self.norms[place](x_BTD)
            if place < self.num_active:
                x_BTD = self.dropout(functional.glu(x_BTD) if self.gated else functional.relu(x_BTD))
        return x_BTD, valid_BT


def shortened_clock(clock: FrameClock, convolutions: Sequence[Sequence[int]]) -> FrameClock:
    """The clock after such convolutions."""
    for _, kernel, stride in convolutions:
        clock = clock.then(kernel, stride, kernel // 2, kernel // 2)
    return clock
