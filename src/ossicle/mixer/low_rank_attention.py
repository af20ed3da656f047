"""Attention to a fixed number of pooled keys and values (Linformer, arXiv 2006.04768), made for any length.

Linformer multiplies keys and values over time by learned matrices E and F of shape (segments, T), which fixes T. Here
a row of E is a learned function of a frame's relative place in its own utterance, on a grid with linear interpolation,
and its softmax over the utterance's frames is what pools. It starts as a bell over a segment's share of the utterance.
Padding and the other rows of a batch therefore change nothing, and a pooled key has the scale of a key at any length.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.multi_head import MultiHead, split_heads
from ossicle.mixer.base import Mixer
from ossicle.ops.pooling import interpolate_grid, relative_places
from ossicle.ops.precision import without_autocast

POINTS_PER_SEGMENT = 4


@final
class SegmentPooling(nn.Module):
    """Weighted means of an utterance's frames, by learned functions of relative place; shared by heads.

    Args:
        num_segments: Means taken of each utterance.
    """

    def __init__(self, num_segments: int) -> None:
        super().__init__()
        points = POINTS_PER_SEGMENT * num_segments
        place_G = (torch.arange(points) + 0.5) / points
        centre_S = (torch.arange(num_segments) + 0.5) / num_segments
        # a bell over the segment: one deviation from its middle to its edges
        apart_SG = (place_G - centre_S[:, None]) * 2 * num_segments
        self.logits = nn.Parameter(-0.5 * apart_SG.square())

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        """The means, (B, segments, D)."""
        rows, frames, _ = x_BTD.shape
        if valid_BT is None:
            valid_BT = torch.ones(1, frames, dtype=torch.bool, device=x_BTD.device)
        with without_autocast(x_BTD):
            logits_BST = interpolate_grid(self.logits, relative_places(valid_BT))
            logits_BST = logits_BST.masked_fill(~valid_BT[:, None], torch.finfo(logits_BST.dtype).min)
            weights_BST = logits_BST.softmax(-1)
        real_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
        return weights_BST.to(x_BTD.dtype).expand(rows, -1, -1) @ real_BTD


@final
class LowRankAttention(MultiHead, Mixer):
    """Every frame sees the pooled keys and values of its utterance; time and memory are linear in T.

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H); None counts them by ``head_dim``.
        dropout: Dropout of attention weights while training.
        num_segments: Pooled keys and values (Linformer's k).
        head_dim: Width of a head (K), as in ``attention``; None for D / H.

    Raises:
        ConfigError: If the heads do not divide the width, or there is no segment.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int | None = 12,
        dropout: float = 0.1,
        num_segments: int = 128,
        head_dim: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads, head_dim)
        if num_segments < 1:
            raise ConfigError(f"mixer.num_segments={num_segments}", "at least one; Linformer takes 128 or 256")
        self.dropout = dropout
        self.pool_keys = SegmentPooling(num_segments)
        self.pool_values = SegmentPooling(num_segments)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        # The weights of a mean add up to one, so that the mean of what a linear map makes is what it makes of the mean:
        # keys and values are mapped after the pooling, which spares two maps of all frames.
        q_BHTK, k_BHSK, v_BHSK = (
            split_heads(frames, self.num_heads).transpose(1, 2)
            for frames in (
                self.query(x_BTD),
                self.key(self.pool_keys(x_BTD, valid_BT)),
                self.value(self.pool_values(x_BTD, valid_BT)),
            )
        )
        dropout = self.dropout if self.training else 0.0
        mixed_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, None, dropout)
        return self.join(mixed_BHTK.transpose(1, 2))
