"""wav2vec: the frame that comes is told from others, each by a logistic loss (arXiv 1904.05862, section 3.2)."""

from typing import final

from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.objective.future import Foreseeing
from ossicle.target.frames import Frames


@final
class ContrastiveBinary(Foreseeing):
    """-log sigmoid(score) of the frame that comes, - weight * mean of log sigmoid(-score) over negatives (equation 2).

    Args:
        target: The frames that are foreseen.
        dim: Width of the encoder's frames (D).
        feature_dim: Channels of the frontend's frames (C).
        num_steps: Frames ahead, from 1 (K).
        num_negatives: Negatives of each frame that comes (N).
        across_rows: Whether negatives come from all rows of a micro-batch; else from the frame's own.
        negative_weight: Weight of the negatives' mean (lambda in the paper); None for their number, as published.

    Raises:
        ConfigError: A weight that is not above 0, or what the base class refuses.
    """

    affine = True

    def __init__(
        self,
        target: Frames,
        dim: int,
        feature_dim: int,
        *,
        num_steps: int = 12,
        num_negatives: int = 10,
        across_rows: bool = False,
        negative_weight: float | None = None,
    ) -> None:
        super().__init__(
            target, dim, feature_dim, num_steps=num_steps, num_negatives=num_negatives, across_rows=across_rows
        )
        self.negative_weight = float(num_negatives) if negative_weight is None else negative_weight
        if self.negative_weight <= 0:
            raise ConfigError(f"objective.negative_weight={negative_weight} tells nothing apart", "give more than 0")

    @override
    def judge(self, right_BT: Tensor, wrong_BTN: Tensor) -> Tensor:
        return functional.softplus(-right_BT) + self.negative_weight * functional.softplus(wrong_BTN).mean(-1)
