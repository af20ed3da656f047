"""Attention with rotary position embedding (arXiv 2104.09864)."""

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int
from ossicle.layer.multi_head import MultiHead
from ossicle.mixer.base import Placed
from ossicle.ops.attention import AUTO, attend, attend_packed, check_backend
from ossicle.ops.packing import rows_and_places
from ossicle.ops.rotary import rotary_angles, rotate


@final
class Rotary(MultiHead, Placed):
    """Softmax attention whose queries and keys are turned by their place, so that scores depend on distance.

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H), of even width; None counts them by ``head_dim``.
        dropout: Dropout of attention weights while training.
        base: Of the frequencies: the slowest pair of channels turns once in about 2 pi x base frames.
        backend: Kernel: ``auto``, or one of ``ossicle.ops.attention_backends.BACKENDS`` by name.
        head_dim: Width of a head (K), as in ``attention``; None for D / H.

    Raises:
        ConfigError: If the heads do not divide the width, are of odd width, or the backend is not to be had.
    """

    reads_order = False

    def __init__(
        self,
        dim: int,
        num_heads: int | None = 12,
        dropout: float = 0.1,
        base: float = 10_000.0,
        backend: str = AUTO,
        *,
        head_dim: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads, head_dim)
        if self.head_dim % 2:
            raise ConfigError(
                f"mixer.num_heads={self.num_heads} makes heads of odd width {self.head_dim}",
                "rotary embedding turns pairs of channels: take twice or half as many heads, or an even width",
            )
        check_backend(backend)
        self.dropout = dropout
        self.base = base
        self.backend = backend

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        place_T = torch.arange(x_BTD.shape[1], device=x_BTD.device) if self.place_BT is None else self.place_BT
        angle_TK = rotary_angles(place_T, self.head_dim, self.base)
        q_BTHK, k_BTHK, v_BTHK = self.heads(x_BTD)
        dropout = self.dropout if self.training else 0.0
        turned = rotate(q_BTHK, angle_TK), rotate(k_BTHK, angle_TK)
        return self.join(attend(*turned, v_BTHK, valid_BT=valid_BT, dropout=dropout, backend=self.backend))

    @override
    def packed(
        self, x_PD: Float[Tensor, "P D"], cu_seqlens: Int[Tensor, " edges"], max_frames: int
    ) -> Float[Tensor, "P D"]:
        # Places start anew in each utterance: only distances matter, but large angles lose digits.
        _, place_P = rows_and_places(cu_seqlens, len(x_PD))
        angle_PK = rotary_angles(place_P, self.head_dim, self.base)
        q_PHK, k_PHK, v_PHK = self.heads(x_PD)
        turned = rotate(q_PHK, angle_PK), rotate(k_PHK, angle_PK)
        dropout = self.dropout if self.training else 0.0
        mixed_PHK = attend_packed(*turned, v_PHK, cu_seqlens, max_frames, dropout=dropout, backend=self.backend)
        return self.join(mixed_PHK)
