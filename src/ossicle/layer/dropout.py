"""Dropout as a module."""

from typing import final

from torch import Tensor, nn
from typing_extensions import override

from ossicle.ops.dropout import dropout


@final
class Dropout(nn.Dropout):
    """torch's module, with the fastest dropout that a device has."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Dropout of any shape while training."""
        return dropout(input, self.p) if self.training else input
