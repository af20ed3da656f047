"""Attention within a sliding window, with some frames that see and are seen by all (arXiv 2004.05150, section 3.1)."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int
from ossicle.layer.feed_forward import init_linear
from ossicle.layer.multi_head import MultiHead, split_heads
from ossicle.mixer.base import Mixer
from ossicle.ops.attention import AUTO, attend, attend_packed, check_backend
from ossicle.ops.blocked_attention import attend_blocked


@final
class LocalAttention(MultiHead, Mixer):
    """Softmax attention of every frame to those within a window; time and memory are linear in T.

    With global frames, the first ones of each utterance see every frame, by maps of their own as in the paper, and
    every frame sees them besides its window.

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H); None counts them by ``head_dim``.
        dropout: Dropout of attention weights while training.
        window: Frames to each side that a frame sees.
        num_global: First frames of an utterance that are global.
        backend: Kernel of the window: ``auto``, or one of ``ossicle.ops.attention_backends.BACKENDS`` by name.
        head_dim: Width of a head (K), as in ``attention``; None for D / H.

    Raises:
        ConfigError: If the heads do not divide the width, the window or the count is negative, or the backend is not to
            be had or is named where global frames leave no choice.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int | None = 12,
        dropout: float = 0.1,
        *,
        window: int = 64,
        num_global: int = 0,
        backend: str = AUTO,
        head_dim: int | None = None,
    ) -> None:
        super().__init__(dim, num_heads, head_dim)
        if window < 0 or num_global < 0:
            raise ConfigError(f"mixer.window={window} with mixer.num_global={num_global}", "neither is negative")
        check_backend(backend)
        if num_global and backend not in {AUTO, "blocked"}:
            raise ConfigError(
                f"mixer.backend={backend} with mixer.num_global={num_global}",
                "global frames are served by blocks alone: leave mixer.backend=auto",
            )
        self.dropout = dropout
        self.window = window
        self.num_global = num_global
        self.backend = backend
        if num_global:
            inner = self.num_heads * self.head_dim
            self.query_global = init_linear(nn.Linear(dim, inner))
            self.key_global = init_linear(nn.Linear(dim, inner))
            self.value_global = init_linear(nn.Linear(dim, inner))

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        q_BTHK, k_BTHK, v_BTHK = self.heads(x_BTD)
        if not self.num_global:
            return self.join(
                attend(
                    q_BTHK,
                    k_BTHK,
                    v_BTHK,
                    valid_BT=valid_BT,
                    dropout=dropout,
                    window=self.window,
                    backend=self.backend,
                )
            )
        near_BTHK = attend_blocked(
            q_BTHK, k_BTHK, v_BTHK, self.window, segment_BT=valid_BT, dropout=dropout, num_global=self.num_global
        )
        far_BGHK = self._global(x_BTD, valid_BT, dropout)
        return self.join(torch.cat([far_BGHK, near_BTHK[:, far_BGHK.shape[1] :]], 1))

    def _global(self, x_BTD: Tensor, valid_BT: Tensor | None, dropout: float) -> Tensor:
        """What the global frames see, (B, G, H, K): every real frame of their row."""
        q_BHGK, k_BHTK, v_BHTK = (
            split_heads(linear(frames), self.num_heads).transpose(1, 2)
            for linear, frames in (
                (self.query_global, x_BTD[:, : self.num_global]),
                (self.key_global, x_BTD),
                (self.value_global, x_BTD),
            )
        )
        real = None if valid_BT is None else valid_BT[:, None, None, :]
        return functional.scaled_dot_product_attention(q_BHGK, k_BHTK, v_BHTK, real, dropout).transpose(1, 2)

    @override
    def packed(
        self, x_PD: Float[Tensor, "P D"], cu_seqlens: Int[Tensor, " edges"], max_frames: int
    ) -> Float[Tensor, "P D"]:
        if self.num_global:
            return super().packed(x_PD, cu_seqlens, max_frames)
        return self.join(
            attend_packed(
                *self.heads(x_PD),
                cu_seqlens,
                max_frames,
                dropout=self.dropout if self.training else 0.0,
                window=self.window,
                backend=self.backend,
            )
        )
