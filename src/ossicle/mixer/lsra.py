"""Long-short range attention: half of the channels attend, half are convolved (arXiv 2004.11886)."""

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int
from ossicle.mixer.attention import Attention
from ossicle.mixer.base import Mixer
from ossicle.mixer.convolution import Convolution
from ossicle.ops.attention import AUTO


@final
class LSRA(Mixer):
    """Softmax attention of the first half of the channels beside a gated convolution of the second (section 4).

    The halves meet in the feed-forward layer of the block.

    Args:
        dim: Model width (D); even.
        num_heads: Heads of the attention, and kernels of the convolution; must divide half the width.
        kind: The convolution, as in ``convolution``.
        kernel: Frames that it sees; odd.
        dropout: Dropout of attention weights and of the convolution's while training.
        backend: The attention's kernel, as in ``attention``.

    Raises:
        ConfigError: The width is odd, or a half refuses its numbers.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        kind: str = "dynamic",
        kernel: int = 31,
        dropout: float = 0.1,
        backend: str = AUTO,
    ) -> None:
        super().__init__()
        if dim % 2:
            raise ConfigError(f"lsra halves its channels, and the width {dim} is odd", f"take {dim + 1}")
        self.attention = Attention(dim // 2, num_heads=num_heads, dropout=dropout, backend=backend)
        self.convolution = Convolution(dim // 2, kind=kind, kernel=kernel, num_heads=num_heads, dropout=dropout)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        far_BTD, near_BTD = x_BTD.chunk(2, -1)
        return torch.cat([self.attention(far_BTD, valid_BT), self.convolution(near_BTD, valid_BT)], -1)

    @override
    def packed(
        self, x_PD: Float[Tensor, "P D"], cu_seqlens: Int[Tensor, " edges"], max_frames: int
    ) -> Float[Tensor, "P D"]:
        halves = zip((self.attention, self.convolution), x_PD.chunk(2, -1), strict=True)
        return torch.cat([mixer.packed(half_PD, cu_seqlens, max_frames) for mixer, half_PD in halves], -1)
