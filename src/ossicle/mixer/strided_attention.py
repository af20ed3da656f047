"""Attention to near frames and to every n-th: the Sparse Transformer's strided pattern, in both directions.

Source: arXiv 1904.10509, sections 4.3 and 5.1.
"""

from typing import Final, final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.multi_head import MultiHead
from ossicle.mixer.base import Mixer
from ossicle.ops.attention import attend
from ossicle.ops.strided_attention import attend_columns, attend_merged

PATTERNS: Final = ("split", "merged")


@final
class StridedAttention(MultiHead, Mixer):
    """Softmax attention to the frames within a stride and to those a multiple of it away.

    A frame has about 2 x stride + T / stride scores: T^1.5 in all where the stride is close to the root of T. The
    stride is fixed, so that a row alone equals the row in a batch.

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H); None counts them by ``head_dim``.
        dropout: Dropout of attention weights while training.
        stride: Frames to each side that are seen, and frames between the others.
        pattern: ``split``: the first half of the heads, rounded up, sees near frames and the others columns, on fused
            kernels; ``merged``: every head sees both under one softmax, whose scores are written out.
        head_dim: Width of a head (K), as in ``attention``; None for D / H.

    Raises:
        ConfigError: If the heads do not divide the width or are too few to be split, the stride is not positive, or
            there is no such pattern.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int | None = 12,
        dropout: float = 0.1,
        stride: int = 32,
        pattern: str = "split",
        *,
        head_dim: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads, head_dim)
        if stride < 1:
            raise ConfigError(f"mixer.stride={stride}", "it counts frames: 1 or more; the root of T costs least")
        if pattern not in PATTERNS:
            raise ConfigError(f"mixer.pattern={pattern!r} does not exist", f"name one of: {', '.join(PATTERNS)}")
        if pattern == "split" and self.num_heads < 2:
            raise ConfigError("mixer.num_heads=1 cannot be split", "take two heads or more, or mixer.pattern=merged")
        self.dropout = dropout
        self.stride = stride
        self.pattern = pattern

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        heads = self.heads(x_BTD)
        dropout = self.dropout if self.training else 0.0
        if self.pattern == "merged":
            return self.join(attend_merged(*heads, self.stride, valid_BT=valid_BT, dropout=dropout))
        num_near = self.num_heads - self.num_heads // 2
        near = (x_BTHK[:, :, :num_near] for x_BTHK in heads)
        far = (x_BTHK[:, :, num_near:] for x_BTHK in heads)
        near_BTHK = attend(*near, valid_BT=valid_BT, dropout=dropout, window=self.stride)
        far_BTHK = attend_columns(*far, self.stride, valid_BT=valid_BT, dropout=dropout)
        return self.join(torch.cat([near_BTHK, far_BTHK], 2))
