"""Layer norm as a module."""

from typing import final

from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.shapes import Float
from ossicle.ops.autocast import autocast_dtype


@final
class LayerNorm(nn.LayerNorm):
    """torch's module, whose output under autocast has the type of the products that read it.

    torch leaves it in float32, though mean, variance and what is done with them are float32 either way: what follows
    rounds it, and until then twice the bytes are moved. Where norms follow the sums, as in wav2vec 2.0 and HuBERT base,
    what blocks hand on is then rounded once a norm, as in the half precision that those were trained in; where norms
    come first, the sums stay float32. Its keys are torch's.
    """

    @override
    def forward(self, input: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        """Layer norm over the last axis, of the same shape (..., D)."""
        normalised = super().forward(input)
        dtype = autocast_dtype(input.device.type)
        return normalised if dtype is None else normalised.to(dtype)
