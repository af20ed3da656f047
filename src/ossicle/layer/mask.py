"""What stands in a masked frame's place."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.shapes import Float, Int64
from ossicle.ops.masking import masked_flags


class Mask(nn.Module, ABC):
    """Embeds normalised frames with some of them hidden.

    Args:
        dim: Width of embedded frames (D).
        feature_dim: Channels of the frontend's frames (C).
    """

    def __init__(self, dim: int, feature_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.feature_dim = feature_dim

    @abstractmethod
    def forward(
        self,
        embed: Callable[[Tensor], Tensor],
        normalised_BTC: Float[Tensor, "B T C"],
        masked_BM: Int64[Tensor, "B M"],
        generator: torch.Generator,
    ) -> Float[Tensor, "B T D"]:
        """Embedded frames (B, T, D) of which those at ``masked_BM`` say nothing of what was there.

        Args:
            embed: Takes normalised frames (B, T, C) to the model's width (B, T, D).
            normalised_BTC: What the model's ``normalise`` returned; left unchanged.
            masked_BM: Masked frames of each row, int64, shape (B, M).
            generator: Source of randomness, on the frames' device, where the mask is random.
        """


@runtime_checkable
class MaskFactory(Protocol):
    """Builds a mask once the model's widths are known."""

    def __call__(self, *, dim: int, feature_dim: int) -> Mask:
        """A mask for frames of these widths."""
        ...


class EmbeddingMask(Mask):
    """One learned vector replaces masked frames after embedding (arXiv 2006.11477, section 3.1; arXiv 2106.07447).

    Args:
        dim: Width of embedded frames (D).
        feature_dim: Channels of the frontend's frames (C).
    """

    def __init__(self, dim: int, feature_dim: int) -> None:
        super().__init__(dim, feature_dim)
        self.vector_D = nn.Parameter(torch.empty(dim).uniform_())

    @override
    def forward(
        self,
        embed: Callable[[Tensor], Tensor],
        normalised_BTC: Float[Tensor, "B T C"],
        masked_BM: Int64[Tensor, "B M"],
        generator: torch.Generator,
    ) -> Float[Tensor, "B T D"]:
        x_BTD = embed(normalised_BTC)
        masked_BT1 = masked_flags(masked_BM, x_BTD.shape[1]).unsqueeze(-1)
        return torch.where(masked_BT1, self.vector_D.to(x_BTD.dtype), x_BTD)


class NoiseMask(Mask):
    """Normal noise replaces masked frames before embedding (arXiv 2202.01855, section 3.1): no parameters.

    Args:
        dim: Width of embedded frames (D).
        feature_dim: Channels of the frontend's frames (C).
        std: Standard deviation of the noise; that of normalised frames is 1.
    """

    def __init__(self, dim: int, feature_dim: int, std: float = 0.1) -> None:
        super().__init__(dim, feature_dim)
        self.std = std

    @override
    def forward(
        self,
        embed: Callable[[Tensor], Tensor],
        normalised_BTC: Float[Tensor, "B T C"],
        masked_BM: Int64[Tensor, "B M"],
        generator: torch.Generator,
    ) -> Float[Tensor, "B T D"]:
        x = normalised_BTC
        noise = torch.randn(x.shape, generator=generator, device=x.device).to(x.dtype) * self.std
        masked_BT1 = masked_flags(masked_BM, x.shape[1]).unsqueeze(-1)
        return embed(torch.where(masked_BT1, noise, x))
