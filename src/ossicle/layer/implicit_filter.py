"""Filters over time that a small network makes of the distance (arXiv 2302.10866, section 3.3)."""

import math
from typing import Final, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.shapes import Float
from ossicle.ops.precision import without_autocast

DECAYED: Final = 0.01
"""What is left of a window at its own reach."""
FAST, SLOW = 0.3, 1.5
"""Reach of the shortest and of the longest window, as a multiple of the filters'."""


@final
class ImplicitFilter(nn.Module):
    """h(t) = sqrt(2 a) (exp(-a t) + floor) MLP(t / reach, cos and sin of 2 pi k t / reach), t frames away.

    The MLP has sines between its layers, their frequency learned. Each channel's window fades at a rate (a) of its own,
    from short to long; a window has an energy near one, so that what is filtered keeps its scale. A filter knows
    nothing of the row's length.

    Args:
        channels: Filters.
        width: Width of the MLP.
        bands: Cosines and sines of its input.
        reach: Frames that count as far.
        frequency: Where the sines' frequency starts.
        floor: What is left of each window at any distance.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 64,
        bands: int = 16,
        reach: int = 1500,
        frequency: float = 10.0,
        floor: float = 0.01,
    ) -> None:
        super().__init__()
        self.bands = bands
        self.reach = reach
        self.floor = floor
        self.first = nn.Linear(1 + 2 * bands, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.frequency = nn.Parameter(torch.full((width,), frequency))
        self.out = nn.Linear(width, channels, bias=False)
        reaches_C = torch.linspace(FAST * reach, SLOW * reach, channels)
        self.rates: Tensor
        self.register_buffer("rates", -math.log(DECAYED) / reaches_C, persistent=False)

    @override
    def forward(self, num_frames: int) -> Float[Tensor, "T C"]:
        """The filters at distances from 0 on, in float32 at least."""
        weight = self.out.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with without_autocast(weight):
            places_T1 = torch.arange(num_frames, device=weight.device).to(dtype)[:, None]
            # Whole turns are taken off in integers: late frames keep their angles.
            orders_K = torch.arange(1, self.bands + 1, device=weight.device)
            turns_TK = torch.arange(num_frames, device=weight.device)[:, None] * orders_K % self.reach
            angles_TK = turns_TK.to(dtype) * (2 * math.pi / self.reach)
            hidden_TC = torch.cat([places_T1 / self.reach, angles_TK.cos(), angles_TK.sin()], -1)
            for layer in (self.first, self.second, self.third):
                mapped_TC = nn.functional.linear(hidden_TC, layer.weight.to(dtype), layer.bias.to(dtype))
                hidden_TC = torch.sin(self.frequency.to(dtype) * mapped_TC)
            rates_C = self.rates.to(dtype)
            window_TC = (torch.exp(-places_T1 * rates_C) + self.floor) * torch.sqrt(2 * rates_C)
            return window_TC * nn.functional.linear(hidden_TC, weight.to(dtype))
