"""Multi-head self-attention (arXiv 1706.03762, section 3.2.2)."""

from typing import final

from torch import Tensor
from typing_extensions import override

from ossicle.core.shapes import Bool, Float, Int
from ossicle.layer.multi_head import MultiHead
from ossicle.mixer.base import Mixer
from ossicle.ops.attention import AUTO, attend, attend_packed, check_backend


@final
class Attention(MultiHead, Mixer):
    """Softmax attention of every frame to every real frame of its row.

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H); None counts them by ``head_dim``, for stacks whose width grows.
        head_dim: Width of a head (K); None for D / H. With both, H x K need not be the model's width.
        dropout: Dropout of attention weights while training.
        backend: Kernel: ``auto``, or one of ``ossicle.ops.attention_backends.BACKENDS`` by name.

    Raises:
        ConfigError: If the heads do not divide the width, or the backend is not to be had.
    """

    reads_order = False

    def __init__(
        self,
        dim: int,
        num_heads: int | None = 12,
        dropout: float = 0.1,
        backend: str = AUTO,
        head_dim: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads, head_dim)
        check_backend(backend)
        self.dropout = dropout
        self.backend = backend

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        q_BTHK, k_BTHK, v_BTHK = self.heads(x_BTD)
        dropout = self.dropout if self.training else 0.0
        mixed_BTHK = attend(q_BTHK, k_BTHK, v_BTHK, valid_BT=valid_BT, dropout=dropout, backend=self.backend)
        return self.join(mixed_BTHK)

    @override
    def packed(
        self, x_PD: Float[Tensor, "P D"], cu_seqlens: Int[Tensor, " edges"], max_frames: int
    ) -> Float[Tensor, "P D"]:
        q_PHK, k_PHK, v_PHK = self.heads(x_PD)
        dropout = self.dropout if self.training else 0.0
        mixed_PHK = attend_packed(q_PHK, k_PHK, v_PHK, cu_seqlens, max_frames, dropout=dropout, backend=self.backend)
        return self.join(mixed_PHK)
