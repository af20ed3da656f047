"""Selective state spaces in both directions in place of attention: Mamba (arXiv 2312.00752)."""

from typing import final

from torch import Tensor
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.selective_state_space import SelectiveStateSpace
from ossicle.mixer.base import Mixer
from ossicle.ops.recurrence import reverse_frames


@final
class Mamba(Mixer):
    """The sum of two Mamba layers, one from the first frame on and one from the last back (arXiv 2312.00752).

    Each has weights of its own. On a GPU that has mamba-ssm (an optional package, built from source) its kernel scans;
    elsewhere this package's own (``ossicle.ops.selective_scan``), to the same numbers.

    Args:
        dim: Model width (D).
        state_dim: States of a channel (N).
        kernel: Frames of the convolution before the scan.
        expand: Width inside as a multiple of the model's.

    Raises:
        ConfigError: A number leaves nothing to compute.
    """

    def __init__(self, dim: int, state_dim: int = 16, kernel: int = 4, expand: int = 2) -> None:
        super().__init__()
        for key, value in (("state_dim", state_dim), ("kernel", kernel), ("expand", expand)):
            if value < 1:
                raise ConfigError(f"mixer.{key}={value} leaves nothing to compute", "give 1 or more")
        self.there = SelectiveStateSpace(dim, state_dim=state_dim, kernel=kernel, expand=expand)
        self.back = SelectiveStateSpace(dim, state_dim=state_dim, kernel=kernel, expand=expand)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        if valid_BT is not None:
            x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
        return self.there(x_BTD) + reverse_frames(self.back(reverse_frames(x_BTD, valid_BT)), valid_BT)
