"""Multi-head self-attention (arXiv 1706.03762, section 3.2.2)."""

from typing import final

from torch import Tensor
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int
from ossicle.layer.multi_head import MultiHead
from ossicle.mixer.base import Mixer
from ossicle.ops.attention import AUTO, attend, attend_packed, check_backend


@final
class Attention(MultiHead, Mixer):
    """Softmax attention of every frame to every real frame of its row.

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H); must divide the width. None counts them by ``head_dim``.
        head_dim: Width of a head (K), for stacks whose width grows; None where ``num_heads`` says it.
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
        if num_heads is None or head_dim is not None:
            num_heads = heads_of(dim, num_heads, head_dim)
        super().__init__(dim, num_heads)
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


def heads_of(dim: int, num_heads: int | None, head_dim: int | None) -> int:
    """Heads of a width by the width of one.

    Raises:
        ConfigError: Both are stated, or neither, or the head's width does not divide the model's.
    """
    if (num_heads is None) == (head_dim is None):
        raise ConfigError("mixer.num_heads and mixer.head_dim say the same twice, or nothing", "state one of them")
    assert head_dim is not None
    if head_dim < 1 or dim % head_dim:
        raise ConfigError(f"mixer.head_dim={head_dim} does not divide the width {dim}", "give a divisor, such as 64")
    return dim // head_dim
