"""WavLM's attention with a gated relative position bias (arXiv 2110.13900, section III-A)."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.feed_forward import INIT_STD
from ossicle.layer.multi_head import MultiHead, check_heads, split_heads
from ossicle.mixer.base import Mixer, MixerStack, Placed, owned_layers
from ossicle.ops.distance_attention import attend_by_distance
from ossicle.ops.relative_position import distances, wavlm_buckets

GATE_WIDTH = 8


class DistanceBias(nn.Module):
    """One learned score for each head and bucket of distances.

    Args:
        num_heads: Attention heads (H).
        num_buckets: Buckets of distances, both sides together.
        max_distance: Distance in frames from which on all share a bucket.

    Raises:
        ConfigError: The buckets cannot be divided into two sides with exact and logarithmic ones, or reach too far.
    """

    def __init__(self, num_heads: int, num_buckets: int, max_distance: int) -> None:
        super().__init__()
        if num_buckets < 4 or num_buckets % 4 or max_distance <= num_buckets // 4:
            raise ConfigError(
                f"mixer.num_buckets={num_buckets} with mixer.max_distance={max_distance} makes no buckets",
                "num_buckets is a multiple of 4, and max_distance more than a quarter of it",
            )
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads))
        nn.init.normal_(self.weight, std=INIT_STD)

    @override
    def forward(self, num_frames: int | None = None) -> Float[Tensor, "R H"]:
        """The score of every distance within T frames, from 1 - T to T - 1; None for those that differ."""
        distance_R = distances(self.max_distance + 1 if num_frames is None else num_frames, self.weight.device)
        return self.weight[wavlm_buckets(distance_R, self.num_buckets, self.max_distance)]


@final
class RelativeAttention(MultiHead, Placed):
    """Softmax attention whose scores carry a bias by bucketed distance, gated by the query's frame.

    The gate follows the released model: it is computed from the frame before it becomes a query, cut into heads, and
    lies between 1 and the larger of 2 and 1 + ``gate_scale``.

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H), which divide the width: the gate reads that share of a frame. None counts them
            by ``head_dim``.
        dropout: Dropout of attention weights while training.
        num_buckets: Buckets of distances, both sides together.
        max_distance: Distance in frames from which on all share a bucket.
        head_dim: Width of a head (K), as in ``attention``; None for D / H.
        owner: The layer whose bias this one reads, or None where it has its own.

    Raises:
        ConfigError: If the heads do not divide the width, or the buckets cannot be made.
    """

    reads_order = False

    def __init__(
        self,
        dim: int,
        num_heads: int | None = 12,
        dropout: float = 0.1,
        *,
        num_buckets: int = 320,
        max_distance: int = 800,
        head_dim: int | None = None,
        owner: "RelativeAttention | None" = None,
    ) -> None:
        super().__init__(dim, num_heads, head_dim)
        self.dropout = dropout
        self.gate = nn.Linear(dim // check_heads(dim, self.num_heads), GATE_WIDTH)
        nn.init.normal_(self.gate.weight, std=INIT_STD)
        nn.init.zeros_(self.gate.bias)
        self.gate_scale = nn.Parameter(torch.ones(self.num_heads))
        # Only the owner registers the bias, so that it stands once among the weights; a tuple hides it in the others.
        bias = DistanceBias(self.num_heads, num_buckets, max_distance) if owner is None else None
        self.distance_bias = bias
        self._owner: tuple[RelativeAttention, ...] = () if owner is None else (owner,)

    def score_of_distance(self, num_frames: int | None) -> Float[Tensor, "R H"]:
        """The shared bias for every distance within T frames, or None for every one that has a bias of its own."""
        if self.distance_bias is not None:
            return self.distance_bias(num_frames)
        return self._owner[0].score_of_distance(num_frames)

    def gates(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T"]:
        """How much of the bias each query takes, (B, H, T)."""
        logits_BTH2 = self.gate(split_heads(x_BTD, self.num_heads)).unflatten(-1, (2, -1)).sum(-1)
        update_BTH, reset_BTH = logits_BTH2.sigmoid().unbind(-1)
        return (update_BTH * (reset_BTH * self.gate_scale - 1) + 2).transpose(1, 2)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        # Frames that were left out put the others further apart than there are frames.
        score_RH = self.score_of_distance(x_BTD.shape[1] if self.place_BT is None else None)
        dropout = self.dropout if self.training else 0.0
        mixed_BTHK = attend_by_distance(
            *self.heads(x_BTD),
            self.gates(x_BTD),
            score_RH=score_RH,
            place_BT=self.place_BT,
            valid_BT=valid_BT,
            dropout=dropout,
        )
        return self.join(mixed_BTHK)


@final
class RelativeAttentionStack(MixerStack):
    """Layers of :class:`RelativeAttention` that share the first one's bias, as WavLM's do.

    Args:
        num_heads: Attention heads (H), which divide every layer's width; None counts them by ``head_dim``.
        dropout: Dropout of attention weights while training.
        num_buckets: Buckets of distances, both sides together.
        max_distance: Distance in frames from which on all share a bucket.
        head_dim: Width of a head (K), as in ``attention``; None for D / H.
    """

    def __init__(
        self,
        num_heads: int | None = 12,
        dropout: float = 0.1,
        num_buckets: int = 320,
        max_distance: int = 800,
        head_dim: int | None = None,
    ) -> None:
        self.num_heads = num_heads
        self.dropout = dropout
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.head_dim = head_dim

    @override
    def build(self, dims: Sequence[int]) -> list[Mixer]:
        def make(dim: int, owner: RelativeAttention | None) -> RelativeAttention:
            return RelativeAttention(
                dim,
                self.num_heads,
                self.dropout,
                num_buckets=self.num_buckets,
                max_distance=self.max_distance,
                head_dim=self.head_dim,
                owner=owner,
            )

        return owned_layers(dims, make)
