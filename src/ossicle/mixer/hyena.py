"""Long convolutions and gates in place of attention: Hyena in both directions (arXiv 2302.10866)."""

from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.feed_forward import init_linear
from ossicle.layer.implicit_filter import ImplicitFilter
from ossicle.mixer.base import Mixer
from ossicle.ops.fourier import long_convolution


@final
class Hyena(Mixer):
    """The Hyena operator of some order (arXiv 2302.10866, definition 3.1), its filters reaching to both sides.

    A linear map and a short depthwise convolution, centred on each frame, give v, x_1, ..., x_N. From z = v on,
    z = x_n * (h_n conv z + b_n z) for n = 1 ... N, channel by channel, and a linear map of the last. The filters h_n
    are implicit (:class:`ossicle.layer.implicit_filter.ImplicitFilter`), one for each side of a frame, and convolved by
    FFT: O(T log T).

    Args:
        dim: Model width (D).
        order: Gates and long convolutions (N).
        short_kernel: Frames of the short convolution; odd.
        filter_dim: Width of the filters' network.
        bands: Cosines and sines that it is given of a distance.
        reach: Frames over which windows fade.

    Raises:
        ConfigError: No order, or a kernel without a centre.
    """

    def __init__(
        self,
        dim: int,
        *,
        order: int = 2,
        short_kernel: int = 3,
        filter_dim: int = 64,
        bands: int = 16,
        reach: int = 1500,
    ) -> None:
        super().__init__()
        if order < 1:
            raise ConfigError(f"mixer.order={order} convolves nothing", "give 1 or more; the paper's is 2")
        if short_kernel < 1 or short_kernel % 2 == 0:
            raise ConfigError(f"mixer.short_kernel={short_kernel} has no centre", "give an odd one, such as 3")
        self.order = order
        wide = (order + 1) * dim
        self.project = init_linear(nn.Linear(dim, wide))
        self.short = nn.Conv1d(wide, wide, short_kernel, padding=short_kernel // 2, groups=wide)
        self.filter = ImplicitFilter(2 * order * dim, width=filter_dim, bands=bands, reach=reach)
        self.skip = nn.Parameter(torch.ones(order, dim))
        self.out = init_linear(nn.Linear(dim, dim))

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        projected_BTC = _silenced(self.project(x_BTD), valid_BT)
        short_BTC = self.short(projected_BTC.transpose(1, 2)).transpose(1, 2)
        state_BTD, *gates = short_BTC.chunk(self.order + 1, -1)
        filters = self.filter(x_BTD.shape[1]).chunk(2 * self.order, -1)
        for place, gate_BTD in enumerate(gates):
            state_BTD = _silenced(state_BTD, valid_BT)
            far_BTD = long_convolution(state_BTD, filters[2 * place], filters[2 * place + 1])
            state_BTD = gate_BTD * (far_BTD + self.skip[place] * state_BTD)
        return self.out(state_BTD.to(projected_BTC.dtype))


def _silenced(x_BTD: Tensor, valid_BT: Tensor | None) -> Tensor:
    """Zeros where a frame is not real."""
    return x_BTD if valid_BT is None else x_BTD.masked_fill(~valid_BT[..., None], 0)
