"""Stabilised light gated recurrent units in both directions (arXiv 2302.10144)."""

from typing import final

from torch import Tensor
from typing_extensions import override

from ossicle.core.shapes import Bool, Float
from ossicle.layer.recurrence import LightRecurrence, check_units
from ossicle.mixer.base import Mixer


@final
class SLiGRU(Mixer):
    """A Li-GRU whose recurrent products are layer-normalised, which bounds its gradients (arXiv 2302.10144, section 3).

    With (p_z, p_h) = LN(U_z h_{t-1}, U_h h_{t-1}), one norm over both without weights of its own, as its authors
    compute it: z_t = sigmoid(BN(W_z x_t) + p_z), c_t = relu(BN(W_h x_t) + p_h), h_t = z_t h_{t-1} + (1 - z_t) c_t.
    The rest is as in ``ligru``.

    Args:
        dim: Model width (D).
        units: Units of one direction; None for half the width.
        momentum: Share of a batch in the running moments of the batch norm.
        epsilon: Added to the variance of the layer norm.

    Raises:
        ConfigError: If no unit is left to a direction.
    """

    def __init__(self, dim: int, units: int | None = None, momentum: float = 0.05, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.recurrence = LightRecurrence(dim, check_units(dim, units), momentum=momentum, epsilon=epsilon)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        return self.recurrence(x_BTD, valid_BT)
