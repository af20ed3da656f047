"""The contract of an encoder."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ossicle.core.batch import EncoderOutput
from ossicle.core.shapes import Bool, Float


class Encoder(nn.Module, ABC):
    """A stack of blocks: frames of the model's width in, frames of the same width out.

    Attributes:
        dim: Model width (D).
        num_layers: Blocks (L).
    """

    dim: int
    num_layers: int

    @abstractmethod
    def forward(
        self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None, *, layers: bool = False
    ) -> EncoderOutput:
        """Encode frames.

        Args:
            x_BTD: Embedded frames, shape (B, T, D).
            valid_BT: True where a frame is real, or None where every frame is.
            layers: Whether every layer's output is wanted too.
        """
