"""The Fourier transform in place of attention: FNet (arXiv 2105.03824)."""

from typing import final

from torch import Tensor
from typing_extensions import override

from ossicle.core.shapes import Bool, Float
from ossicle.mixer.base import Mixer
from ossicle.ops.fourier import fourier_mix


@final
class Fourier(Mixer):
    """The real part of the Fourier transform over frames and channels (arXiv 2105.03824, equation 3); no parameters.

    Every row is transformed over its own length, so that padding changes nothing. It computes in float32 at least.

    Args:
        dim: Model width (D); any.
        ortho: Keep the energy of a row, which the transform as published multiplies by T x D. It then stands beside a
            residual in a stack of any norm; False is FNet's to the letter.
    """

    def __init__(self, dim: int, ortho: bool = True) -> None:  # noqa: ARG002
        super().__init__()
        self.ortho = ortho

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        return fourier_mix(x_BTD, valid_BT, ortho=self.ortho).to(x_BTD.dtype)
