"""A frozen model as the teacher: any checkpoint that was trained before."""

from collections.abc import Callable
from typing import final

import torch
from typing_extensions import override

from ossicle.core.clock import FrameClock
from ossicle.layer.layer_reader import Read
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.target.base import Teacher


@final
class FrozenTeacher(Teacher):
    """A model with trained weights, of any architecture at the student's frame rate.

    Where the frames' middles differ, the nearest ones are taken. The weights are saved in checkpoints, and are not
    among those that are exported.

    Args:
        clock: The clock of the student's frames.
        feature_dim: Channels of the student's frontend's frames, which this teacher does not look at.
        model: ``model()`` makes the teaching model with its weights; called once, on the host.
        top_layers: How many layers are read, counted from the last (K).
        read: What is read of each.

    Attributes:
        dim: Width of the teacher's frames.

    Raises:
        ConfigError: The teacher has fewer layers than are read, or another frame rate.
    """

    def __init__(
        self,
        clock: FrameClock,
        feature_dim: int,
        *,
        model: Callable[[], SpeechEncoder],
        top_layers: int = 8,
        read: Read = "blocks",
    ) -> None:
        super().__init__(clock, feature_dim, top_layers=top_layers, read=read)
        with torch.device("cpu"):  # weights are loaded even where a config is only checked: so they are checked too
            self.frozen = model().requires_grad_(requires_grad=False).eval()
        self.dim = self.frozen.dim
        self._fits(self.frozen)

    @override
    def train(self, mode: bool = True) -> "FrozenTeacher":
        super().train(mode)
        self.frozen.eval()
        return self

    @property
    @override
    def model(self) -> SpeechEncoder:
        return self.frozen

    @override
    def adopt(self, model: SpeechEncoder) -> None:
        """Nothing is taken from the student."""
