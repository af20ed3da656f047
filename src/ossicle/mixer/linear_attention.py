"""Attention by a positive feature map instead of a softmax (arXiv 2006.16236)."""

from typing import final

from torch import Tensor
from typing_extensions import override

from ossicle.core.shapes import Bool, Float
from ossicle.layer.multi_head import MultiHead
from ossicle.mixer.base import Mixer
from ossicle.ops.linear_attention import attend_features, elu_features


@final
class LinearAttention(MultiHead, Mixer):
    """Every frame sees every real frame by elu(q) + 1 and elu(k) + 1, in both directions, in time linear in T.

    There are no attention weights to drop.

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H); None counts them by ``head_dim``.
        head_dim: Width of a head (K), as in ``attention``; None for D / H.

    Raises:
        ConfigError: If the heads do not divide the width.
    """

    reads_order = False

    def __init__(self, dim: int, num_heads: int | None = 12, head_dim: int | None = None) -> None:
        super().__init__(dim, num_heads, head_dim)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        q_BTHK, k_BTHK, v_BTHK = self.heads(x_BTD)
        return self.join(attend_features(elu_features(q_BTHK), elu_features(k_BTHK), v_BTHK, valid_BT))
