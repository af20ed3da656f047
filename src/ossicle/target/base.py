"""The contracts of targets."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.shapes import Float, Int64


class DiscreteTarget(nn.Module, ABC):
    """One class a frame, without gradient: what masked prediction predicts.

    Attributes:
        num_classes: How many classes there are (V).
    """

    num_classes: int

    @abstractmethod
    def forward(self, batch: Batch, clock: FrameClock) -> Int64[Tensor, "B T"]:
        """Class of every frame of the model's clock, int64, shape (B, T)."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """What a learned quantiser makes of frames.

    Args:
        vectors_BMD: Quantised frames with a gradient into codebook and input, shape (B, M, D).
        codes_BMG: The code that each frame took in each group, int64, shape (B, M, G): equal codes, equal vectors.
        code_probabilities_GV: Softmax probabilities averaged over frames, with gradient: the diversity loss's input.
        code_counts_GV: How often each code was the most likely one, without gradient and without noise.
    """

    vectors_BMD: Tensor
    codes_BMG: Tensor
    code_probabilities_GV: Tensor
    code_counts_GV: Tensor


class QuantisedTarget(nn.Module, ABC):
    """Quantises the frontend's frames with learned codebooks: what a contrastive objective tells apart.

    Attributes:
        dim: Width of the quantised vectors.
    """

    dim: int

    @abstractmethod
    def forward(self, features_BMC: Float[Tensor, "B M C"], *, seed: int, position: int, step: int) -> Quantised:
        """Quantise frames. ``seed`` and ``position`` determine the Gumbel noise, ``step`` the temperature."""
