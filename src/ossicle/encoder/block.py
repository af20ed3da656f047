"""Blocks: what an encoder repeats."""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.shapes import Bool, Float
from ossicle.layer.feed_forward import FeedForward
from ossicle.mixer.base import Mixer


class Block(nn.Module, ABC):
    """Frames in, frames out, of one width.

    No Python branch depends on data or on chance, so a block compiles in place as one graph.
    """

    @abstractmethod
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        """One block on frames, (B, T, D)."""


class TransformerBlock(Block):
    """A mixer and a feed-forward network, each with a residual and a layer norm; subclasses say where norms stand.

    Args:
        mixer: Moves information between frames.
        dim: Model width (D).
        ffn_dim: Width inside the feed-forward network (F).
        dropout: Dropout of both residual branches.
        activation_dropout: Dropout inside the feed-forward network.
    """

    def __init__(self, mixer: Mixer, dim: int, ffn_dim: int, *, dropout: float, activation_dropout: float) -> None:
        super().__init__()
        self.mixer = mixer
        self.mixer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout=dropout, activation_dropout=activation_dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)


@final
class PostNormBlock(TransformerBlock):
    """Norms after the residual sums, as in wav2vec 2.0 and HuBERT base (arXiv 1706.03762, section 3.1)."""

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        x_BTD = self.mixer_norm(x_BTD + self.dropout(self.mixer(x_BTD, valid_BT)))
        return self.feed_forward_norm(x_BTD + self.feed_forward(x_BTD))


@final
class PreNormBlock(TransformerBlock):
    """Norms before each branch, as in wav2vec 2.0 and HuBERT large (arXiv 2002.04745)."""

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.mixer(self.mixer_norm(x_BTD), valid_BT))
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
