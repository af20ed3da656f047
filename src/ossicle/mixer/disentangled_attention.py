"""DeBERTa's disentangled attention (arXiv 2006.03654, section 3.1), as SEW-D has it (arXiv 2109.06870)."""

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.feed_forward import INIT_STD
from ossicle.layer.multi_head import MultiHead, split_heads
from ossicle.mixer.base import Mixer, MixerStack, Placed
from ossicle.ops.relative_position import attend_biased, by_pair, deberta_buckets, distances

PARTS = 3
"""Content to content, content to position, position to content: the scores are divided by sqrt(3 K)."""
NORM_EPS = 1e-7
"""As released: embeddings start with a variance of 4e-4, of which torch's 1e-5 would be a fortieth."""


class DistanceEmbedding(nn.Module):
    """A normalised embedding of each bucket of distances.

    Args:
        dim: Model width (D).
        num_buckets: Buckets of each side.
        max_distance: Distance in frames that the last bucket of a side stands for.
        dropout: Dropout of the embeddings.

    Raises:
        ConfigError: The buckets cannot be divided into exact and logarithmic ones.
    """

    def __init__(self, dim: int, num_buckets: int, max_distance: int, dropout: float) -> None:
        super().__init__()
        if num_buckets < 4 or num_buckets % 2 or max_distance <= num_buckets // 2 + 1:
            raise ConfigError(
                f"mixer.num_buckets={num_buckets} with mixer.max_distance={max_distance} makes no buckets",
                "num_buckets is even and at least 4, and max_distance more than half of it and one",
            )
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.weight = nn.Parameter(torch.empty(2 * num_buckets, dim))
        nn.init.normal_(self.weight, std=INIT_STD)
        self.norm = nn.LayerNorm(dim, NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(self) -> Float[Tensor, "G D"]:
        """The embeddings of all buckets, (2 x num_buckets, D)."""
        return self.dropout(self.norm(self.weight))

    def buckets(self, distance: Tensor) -> Tensor:
        """The bucket of each distance, key minus query."""
        return deberta_buckets(-distance, self.num_buckets, self.max_distance)


@final
class DisentangledAttention(MultiHead, Placed):
    """Softmax attention whose scores add what content says of distance and distance of content.

    As in SEW-D and DeBERTa v2, distances are embedded once for all layers, normalised, and mapped by the maps of
    content; the position-to-content term takes the released models' distance (query minus key, as the other term's).

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H); None counts them by ``head_dim``.
        dropout: Dropout of attention weights while training.
        num_buckets: Buckets of distances on each side.
        max_distance: Distance in frames that the last bucket of a side stands for.
        distance_dropout: Dropout of the embeddings of distances while training; None for ``dropout``. DeBERTa takes its
            hidden layers', which SEW-D sets to 0.
        head_dim: Width of a head (K), as in ``attention``; None for D / H.
        owner: The layer whose embedding this one reads, or None where it has its own.
    """

    reads_order = False

    def __init__(
        self,
        dim: int,
        num_heads: int | None = 12,
        dropout: float = 0.1,
        *,
        num_buckets: int = 256,
        max_distance: int = 512,
        distance_dropout: float | None = None,
        head_dim: int | None = None,
        owner: "DisentangledAttention | None" = None,
    ) -> None:
        super().__init__(dim, num_heads, head_dim)
        self.dropout = dropout
        self.scale = 1 / math.sqrt(PARTS * self.head_dim)
        # Only the owner registers the embedding: it stands once among the weights. A tuple hides it in the others.
        of_distances = dropout if distance_dropout is None else distance_dropout
        self.distances = DistanceEmbedding(dim, num_buckets, max_distance, of_distances) if owner is None else None
        self._owner: tuple[DisentangledAttention, ...] = () if owner is None else (owner,)

    @property
    def embedding(self) -> DistanceEmbedding:
        """The shared embedding of distances."""
        return self._owner[0].embedding if self.distances is None else self.distances

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        embedding_GD = self.embedding()
        buckets = self._buckets(x_BTD)
        q_BTHK, k_BTHK, v_BTHK = self.heads(x_BTD)
        from_GHK = split_heads(self.query(embedding_GD), self.num_heads) * self.scale
        to_GHK = split_heads(self.key(embedding_GD), self.num_heads) * self.scale
        to_position_BHTG = torch.einsum("bthk,ghk->bhtg", q_BTHK, to_GHK)
        to_content_BHTG = torch.einsum("bthk,ghk->bhtg", k_BTHK, from_GHK)

        def bias(start: int, stop: int) -> Tensor:
            bucket_BHQT = buckets(start, stop).expand(*to_position_BHTG.shape[:2], -1, -1)
            position_BHQT = to_position_BHTG[:, :, start:stop].gather(-1, bucket_BHQT)
            return position_BHQT + to_content_BHTG.gather(-1, bucket_BHQT.mT).mT

        dropout = self.dropout if self.training else 0.0
        mixed_BTHK = attend_biased(q_BTHK, k_BTHK, v_BTHK, bias, valid_BT=valid_BT, dropout=dropout, scale=self.scale)
        return self.join(mixed_BTHK)

    def _buckets(self, x_BTD: Tensor) -> Callable[[int, int], Tensor]:
        """What gives the buckets of queries ``start`` to ``stop`` by keys, (B or 1, 1, Q, T)."""
        num_frames, place_BT = x_BTD.shape[1], self.place_BT
        if place_BT is None:
            bucket_R1 = self.embedding.buckets(distances(num_frames, x_BTD.device))[:, None]
            return lambda start, stop: by_pair(bucket_R1, num_frames, start, stop)[None]
        return lambda start, stop: self.embedding.buckets(place_BT[:, None, None] - place_BT[:, None, start:stop, None])


@final
class DisentangledAttentionStack(MixerStack):
    """Layers of :class:`DisentangledAttention`; those of one width share the first one's embedding of distances.

    Args:
        num_heads: Attention heads (H); None counts them by ``head_dim``.
        dropout: Dropout of attention weights while training.
        num_buckets: Buckets of distances on each side.
        max_distance: Distance in frames that the last bucket of a side stands for.
        distance_dropout: Dropout of the embeddings of distances while training; None for ``dropout``.
        head_dim: Width of a head (K), as in ``attention``; None for D / H.
    """

    def __init__(
        self,
        num_heads: int | None = 12,
        dropout: float = 0.1,
        num_buckets: int = 256,
        max_distance: int = 512,
        distance_dropout: float | None = None,
        *,
        head_dim: int | None = None,
    ) -> None:
        self.num_heads = num_heads
        self.dropout = dropout
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.distance_dropout = distance_dropout
        self.head_dim = head_dim

    @override
    def build(self, dims: Sequence[int]) -> list[Mixer]:
        owners: dict[int, DisentangledAttention] = {}
        mixers: list[Mixer] = []
        for dim in dims:
            mixer = DisentangledAttention(
                dim,
                self.num_heads,
                self.dropout,
                num_buckets=self.num_buckets,
                max_distance=self.max_distance,
                distance_dropout=self.distance_dropout,
                head_dim=self.head_dim,
                owner=owners.get(dim),
            )
            owners.setdefault(dim, mixer)
            mixers.append(mixer)
        return mixers
