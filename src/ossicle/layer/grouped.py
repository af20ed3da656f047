"""Linear maps of groups of channels, each by itself."""

from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.shapes import Float
from ossicle.layer.feed_forward import INIT_STD
from ossicle.ops.gelu import bias_gelu
from ossicle.ops.grouped_product import grouped_product


@final
class GroupedLinear(nn.Module):
    """A linear map whose matrix is block-diagonal: each group of channels is mapped by itself.

    Args:
        in_dim: Channels that come in.
        out_dim: Channels that go out.
        groups: Groups; must divide both.
    """

    decays = True

    def __init__(self, in_dim: int, out_dim: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(groups, in_dim // groups, out_dim // groups))
        nn.init.normal_(self.weight, std=INIT_STD)
        self.bias = nn.Parameter(torch.zeros(out_dim))

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T F"]:
        """Map each frame alone."""
        if self.groups == 1:
            return nn.functional.linear(x_BTD, self.weight[0].mT, self.bias)
        return grouped_product(x_BTD, self.weight) + self.bias

    def gelu(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T F"]:
        """The same and a GELU, by the kernel that takes bias and GELU together where there is one."""
        return bias_gelu(grouped_product(x_BTD, self.weight), self.bias)
