"""Gated recurrent units in both directions (arXiv 1406.1078, section 2.3)."""

from typing import final

from torch import Tensor
from typing_extensions import override

from ossicle.core.shapes import Bool, Float
from ossicle.layer.recurrence import GatedRecurrence, check_units
from ossicle.mixer.base import Mixer


@final
class GRU(Mixer):
    """``torch.nn.GRU`` in both directions of time, cuDNN's on a GPU, and a linear map of both to the model width.

    Args:
        dim: Model width (D).
        units: Units of one direction; None for half the width.

    Raises:
        ConfigError: If no unit is left to a direction.
    """

    def __init__(self, dim: int, units: int | None = None) -> None:
        super().__init__()
        self.recurrence = GatedRecurrence("GRU", dim, check_units(dim, units))

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        return self.recurrence(x_BTD, valid_BT)
