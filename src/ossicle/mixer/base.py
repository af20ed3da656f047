"""The contract of a token mixer."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ossicle.core.shapes import Bool, Float


class Mixer(nn.Module, ABC):
    """Moves information between frames: (B, T, D) in, (B, T, D) out.

    A block adds the residual, the norm and the dropout; a mixer is the map alone. Every mixer takes the model width as
    its first argument, ``dim``; its other hyperparameters come from its YAML file.
    """

    @abstractmethod
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        """Mix frames.

        Args:
            x_BTD: Frames, shape (B, T, D).
            valid_BT: True where a frame is real, or None where every frame is. Real frames take nothing from others.

        Returns:
            Mixed frames, shape (B, T, D); what stands at frames that are not real is undefined.
        """
