"""Attention whose scores fall with distance, by learned slopes: ALiBi as in data2vec 2.0."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.shapes import Bool, Float
from ossicle.layer.multi_head import MultiHead
from ossicle.mixer.base import Mixer, MixerStack, Placed, owned_layers
from ossicle.ops.distance_attention import attend_by_distance
from ossicle.ops.relative_position import alibi_slopes


@final
class AlibiAttention(MultiHead, Placed):
    """Softmax attention with linear biases (arXiv 2108.12409, section 3), alike on both sides of a frame.

    score = q k / sqrt(K) - max(0, scale_h) x slope_h x |distance|, where the slopes are ALiBi's and the scale of each
    head is learned, from 1 on (arXiv 2212.07525, section 4.2).

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H); None counts them by ``head_dim``.
        dropout: Dropout of attention weights while training.
        owner: The layer whose scales this one reads, or None where it has its own.

    Raises:
        ConfigError: If the heads do not divide the width.
    """

    slope_H: Tensor

    reads_order = False

    def __init__(
        self,
        dim: int,
        num_heads: int | None = 12,
        dropout: float = 0.1,
        *,
        head_dim: int | None = None,
        owner: "AlibiAttention | None" = None,
    ) -> None:
        super().__init__(dim, num_heads, head_dim)
        self.dropout = dropout
        self.register_buffer("slope_H", torch.tensor(alibi_slopes(self.num_heads)), persistent=False)
        # Only the owner registers the scales, which stand once among the weights; a tuple hides it in the others.
        self.scale = nn.Parameter(torch.ones(self.num_heads)) if owner is None else None
        self._owner: tuple[AlibiAttention, ...] = () if owner is None else (owner,)

    def slopes(self) -> Float[Tensor, " H"]:
        """How fast the scores of each head fall with distance."""
        scale_H = self._owner[0].scale if self.scale is None else self.scale
        assert scale_H is not None
        return scale_H.clamp(min=0) * self.slope_H

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        mixed_BTHK = attend_by_distance(
            *self.heads(x_BTD), self.slopes()[None, :, None], place_BT=self.place_BT, valid_BT=valid_BT, dropout=dropout
        )
        return self.join(mixed_BTHK)


@final
class AlibiAttentionStack(MixerStack):
    """Layers of :class:`AlibiAttention` that share the first one's scales, as data2vec 2.0's do.

    Args:
        num_heads: Attention heads (H); None counts them by ``head_dim``.
        dropout: Dropout of attention weights while training.
        head_dim: Width of a head (K), as in ``attention``; None for D / H.
    """

    def __init__(self, num_heads: int | None = 12, dropout: float = 0.1, head_dim: int | None = None) -> None:
        self.num_heads = num_heads
        self.dropout = dropout
        self.head_dim = head_dim

    @override
    def build(self, dims: Sequence[int]) -> list[Mixer]:
        def make(dim: int, owner: AlibiAttention | None) -> AlibiAttention:
            return AlibiAttention(dim, self.num_heads, self.dropout, head_dim=self.head_dim, owner=owner)

        return owned_layers(dims, make)
