"""XNOR-Former: attention by agreement of queries and keys, on and off (arXiv 2210.16643).

The paper's product of two binary vectors counts where both are on and where both are off. Its author's code
(``WeightedXNorCosAttention`` in ESPnet), from which the formula is taken, makes soft bits by a softmax over the
channels of a head, normalises both counts apart, and adds them with learned weights.
"""

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.shapes import Bool, Float
from ossicle.layer.multi_head import MultiHead
from ossicle.mixer.base import Mixer
from ossicle.ops.linear_attention import attend_features
from ossicle.ops.pooling import relative_places
from ossicle.ops.precision import without_autocast


@final
class KeyQueryAttention(MultiHead, Mixer):
    """Means of values weighted by where queries and keys agree: both on, and both off; linear in T.

    With q and k the softmax over a head's channels, frame i gives frame j of an utterance of n frames the weight
    ``c(i - j) q_i'k_j`` in the one mean and ``c(i - j) (1 - q_i)'(1 - k_j)`` in the other, where
    c(d) = cos(pi d / 2n) favours near frames (arXiv 2202.08791, equation 10).

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H); None counts them by ``head_dim``.
        head_dim: Width of a head (K), as in ``attention``; None for D / H.

    Raises:
        ConfigError: If the heads do not divide the width.
    """

    def __init__(self, dim: int, num_heads: int | None = 12, head_dim: int | None = None) -> None:
        super().__init__(dim, num_heads, head_dim)
        self.shares = nn.Parameter(torch.full((2,), 0.5))

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        q_BTHK, k_BTHK, v_BTHK = self.heads(x_BTD)
        all_BT = x_BTD.new_ones(1, x_BTD.shape[1], dtype=torch.bool) if valid_BT is None else valid_BT
        with without_autocast(x_BTD):
            wide = torch.promote_types(x_BTD.dtype, torch.float32)
            angle_BT11 = (math.pi / 2 * relative_places(all_BT).to(wide))[..., None, None]
            on_q, on_k = q_BTHK.to(wide).softmax(-1), k_BTHK.to(wide).softmax(-1)
            both_on, both_off = (
                attend_features(_placed(q, angle_BT11), _placed(k, angle_BT11), v_BTHK, valid_BT)
                for q, k in ((on_q, on_k), (1 - on_q, 1 - on_k))
            )
            on, off = functional.relu(self.shares)
        return self.join((on * both_on + off * both_off).to(v_BTHK.dtype))


def _placed(x_BTHK: Tensor, angle_BT11: Tensor) -> Tensor:
    """Features whose products carry the cosine of the difference of two angles, (B, T, H, 2K)."""
    return torch.cat([x_BTHK * angle_BT11.cos(), x_BTHK * angle_BT11.sin()], -1)
