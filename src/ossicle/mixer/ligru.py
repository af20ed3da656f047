"""Light gated recurrent units in both directions (arXiv 1803.10225)."""

from typing import final

from torch import Tensor
from typing_extensions import override

from ossicle.core.shapes import Bool, Float
from ossicle.layer.recurrence import LightRecurrence, check_units
from ossicle.mixer.base import Mixer


@final
class LiGRU(Mixer):
    """A recurrence with one gate (arXiv 1803.10225, equations 8 to 10), in both directions of time.

    z_t = sigmoid(BN(W_z x_t) + U_z h_{t-1}), the candidate c_t = relu(BN(W_h x_t) + U_h h_{t-1}), the state
    h_t = z_t h_{t-1} + (1 - z_t) c_t. The directions have weights of their own; a linear map takes both to the model
    width. States have no bound: where they explode, take ``sligru``. In training the batch norm (BN) takes its moments
    from the batch's real frames; in evaluation rows know nothing of each other.

    Args:
        dim: Model width (D).
        units: Units of one direction; None for half the width.
        momentum: Share of a batch in the running moments of the batch norm.

    Raises:
        ConfigError: If no unit is left to a direction.
    """

    def __init__(self, dim: int, units: int | None = None, momentum: float = 0.05) -> None:
        super().__init__()
        self.recurrence = LightRecurrence(dim, check_units(dim, units), momentum=momentum, epsilon=None)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        return self.recurrence(x_BTD, valid_BT)
