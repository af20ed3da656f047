"""The model's own moving average as its teacher: data2vec (arXiv 2202.03555, section 3.2) and its kin."""

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from ossicle.core.clock import FrameClock
from ossicle.core.shapes import Float
from ossicle.layer.layer_reader import Read
from ossicle.layer.running_copy import RunningCopy
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.ops.momentum import Momentum
from ossicle.target.base import Teacher


class EmaTeacher(Teacher):
    """An exponential moving average of the student, taken once an optimiser step and saved in checkpoints.

    It works with every model, since it copies the one that it is given. It has no gradient, and neither dropout nor
    skipped layers unless they are asked for.

    Args:
        clock: The clock of the model's frames.
        feature_dim: Channels of the frontend's frames (C).
        momentum: What the teacher keeps of itself, by optimiser step.
        top_layers: How many layers are read, counted from the last (K).
        read: What is read of each: the ``feed_forward`` network's output before its residual sum, or the ``blocks``'.
        shared: Names of the model's parts that are not averaged but the student's own, such as ``frontend`` and
            ``encoder.position``. With a shared frontend its frames are made once. At a momentum of 1 these too stand
            still, so who freezes a teacher for good freezes the student's own there as well.
        dropout: Whether the teacher too has dropout and skipped layers while the student is trained, drawn for itself:
            SPIRAL's (arXiv 2201.10207; ``target_compute_perturb`` in its authors' config) and ESSL's.
    """

    def __init__(
        self,
        clock: FrameClock,
        feature_dim: int,
        *,
        momentum: Momentum,
        top_layers: int = 8,
        read: Read = "feed_forward",
        shared: Sequence[str] = (),
        dropout: bool = False,
    ) -> None:
        super().__init__(clock, feature_dim, top_layers=top_layers, read=read)
        self.momentum = momentum
        self.shared = tuple(shared)
        self.shares_frontend = "frontend" in self.shared
        self.dropout = dropout
        self.copy: RunningCopy[SpeechEncoder] | None = None

    @property
    @override
    def model(self) -> SpeechEncoder:
        assert self.copy is not None, "adopt comes first"
        return self.copy.module

    @override
    def adopt(self, model: SpeechEncoder) -> None:
        if self.copy is None:
            self.copy = RunningCopy(model, self.shared, dropout=self.dropout)
            self._fits(self.copy.module)
        else:
            self.copy.load(model)

    @override
    def follow(self, model: SpeechEncoder, *, step: int) -> None:
        assert self.copy is not None, "adopt comes first"
        self.copy.follow(model, self.momentum(step))

    @override
    def gap(self, model: SpeechEncoder) -> Float[Tensor, ""] | None:
        assert self.copy is not None, "adopt comes first"
        return self.copy.gap(model)
