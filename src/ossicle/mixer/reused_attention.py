"""ARMHuBERT's attention: layers reuse the attention map of an earlier one (arXiv 2305.11685, section 2.2)."""

from collections.abc import Sequence
from functools import partial
from typing import final

from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.feed_forward import init_linear
from ossicle.layer.multi_head import head_sizes, split_heads
from ossicle.mixer.base import Lender, Mixer, MixerStack
from ossicle.ops.attention import AUTO, attend, check_backend


@final
class ReusedAttention(Lender):
    """Softmax attention that lends its queries and keys, or mixes its own values by those of another layer.

    Fused kernels never hold the map, so queries and keys stand for it: the same function of them is computed again.
    The result equals reuse of the map, but for dropout, which falls anew in each layer. The saving is that of two
    linear maps a layer.

    Where nothing was lent, because the leading layer was skipped in training (layer drop) or layers are called one by
    one outside of an encoder, queries and keys are made from this layer's own frames by the leading layer's maps.

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H); None counts them by ``head_dim``.
        dropout: Dropout of attention weights while training.
        backend: Kernel: ``auto``, or one of ``ossicle.ops.attention_backends.BACKENDS`` by name.
        head_dim: Width of a head (K), as in ``attention``; None for D / H.
        leader: The layer whose map is reused, or None where this one makes its own.

    Raises:
        ConfigError: If the heads do not divide the width, or the backend is not to be had.
    """

    reads_order = False

    def __init__(
        self,
        dim: int,
        num_heads: int | None = 12,
        dropout: float = 0.1,
        *,
        backend: str = AUTO,
        head_dim: int | None = None,
        leader: "ReusedAttention | None" = None,
    ) -> None:
        super().__init__()
        check_backend(backend)
        self.num_heads, width = head_sizes(dim, num_heads, head_dim)
        inner = self.num_heads * width
        self.dropout = dropout
        self.backend = backend
        self.query = init_linear(nn.Linear(dim, inner)) if leader is None else None
        self.key = init_linear(nn.Linear(dim, inner)) if leader is None else None
        self.value = init_linear(nn.Linear(dim, inner))
        self.out = init_linear(nn.Linear(inner, dim))
        # A tuple hides the leader from this module: its weights stand among the leader's alone.
        self._leader: tuple[ReusedAttention, ...] = () if leader is None else (leader,)

    @property
    @override
    def creditor(self) -> "ReusedAttention | None":
        return self._leader[0] if self._leader else None

    def queries_and_keys(self, x_BTD: Float[Tensor, "B T D"]) -> tuple[Tensor, Tensor]:
        """What the leading layer's maps make of frames, (B, T, H, K) each."""
        if self.query is None or self.key is None:
            return self._leader[0].queries_and_keys(x_BTD)
        return split_heads(self.query(x_BTD), self.num_heads), split_heads(self.key(x_BTD), self.num_heads)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        q_BTHK, k_BTHK = self.borrowed or self.queries_and_keys(x_BTD)
        if self.lends and not self._leader:
            self.lent = (q_BTHK, k_BTHK)
        v_BTHK = split_heads(self.value(x_BTD), self.num_heads)
        dropout = self.dropout if self.training else 0.0
        mixed_BTHK = attend(q_BTHK, k_BTHK, v_BTHK, valid_BT=valid_BT, dropout=dropout, backend=self.backend)
        return self.out(mixed_BTHK.flatten(2))


@final
class ReusedAttentionStack(MixerStack):
    """Groups of layers of which the first makes an attention map and the others reuse it.

    A layer of another width than the one before it starts a group.

    Args:
        num_heads: Attention heads (H); None counts them by ``head_dim``.
        dropout: Dropout of attention weights while training.
        num_reuses: Layers that reuse each map; 1 is the paper's: every second layer.
        backend: Kernel: ``auto``, or one of ``ossicle.ops.attention_backends.BACKENDS`` by name.
        head_dim: Width of a head (K), as in ``attention``; None for D / H.

    Raises:
        ConfigError: ``num_reuses`` is negative.
    """

    def __init__(
        self,
        num_heads: int | None = 12,
        dropout: float = 0.1,
        num_reuses: int = 1,
        backend: str = AUTO,
        head_dim: int | None = None,
    ) -> None:
        if num_reuses < 0:
            raise ConfigError(f"mixer.num_reuses={num_reuses}", "it counts layers: 0 or more")
        self.num_heads = num_heads
        self.dropout = dropout
        self.num_reuses = num_reuses
        self.backend = backend
        self.head_dim = head_dim

    @override
    def build(self, dims: Sequence[int]) -> list[Mixer]:
        make = partial(
            ReusedAttention,
            num_heads=self.num_heads,
            dropout=self.dropout,
            backend=self.backend,
            head_dim=self.head_dim,
        )
        mixers: list[Mixer] = []
        leader: ReusedAttention | None = None
        led_dim, reuses = 0, 0
        for dim in dims:
            if leader is None or dim != led_dim or reuses == self.num_reuses:
                leader = make(dim)
                led_dim, reuses = dim, 0
                mixers.append(leader)
            else:
                reuses += 1
                mixers.append(make(dim, leader=leader))
        return mixers
