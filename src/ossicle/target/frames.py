"""The frontend's own frames as the target: CPC (arXiv 1807.03748) and wav2vec (arXiv 1904.05862)."""

from typing import final

from torch import Tensor, nn

from ossicle.core.clock import FrameClock
from ossicle.core.shapes import Float


@final
class Frames(nn.Module):
    """What comes is what the frontend makes of it; the gradient goes there too.

    Args:
        clock: The model's clock, which this target does not look at.
        feature_dim: Channels of the frontend's frames (C).
    """

    def __init__(self, clock: FrameClock, feature_dim: int) -> None:
        super().__init__()
        del clock
        self.dim = feature_dim

    def forward(self, features_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """The frames."""
        return features_BTC
