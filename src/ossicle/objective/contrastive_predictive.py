"""Contrastive predictive coding: the frame that comes, told from others by cross entropy (arXiv 1807.03748)."""

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.objective.future import Foreseeing


@final
class ContrastivePredictive(Foreseeing):
    """InfoNCE over the frames that come (equation 4), scored by a bilinear map for each distance (equation 3).

    loss sum = cross entropy summed over the rows' contexts and over distances; the count is how many predictions there
    are. The arguments are those of :class:`~ossicle.objective.future.Foreseeing`.
    """

    @override
    def judge(self, right_BT: Tensor, wrong_BTN: Tensor) -> Tensor:
        every_BTN = torch.cat([right_BT[..., None], wrong_BTN], dim=-1)
        return every_BTN.logsumexp(-1) - right_BT
