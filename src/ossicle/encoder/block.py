"""Blocks: what an encoder repeats."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.shapes import Bool, Float, Int64
from ossicle.layer.dropout import Dropout
from ossicle.layer.feed_forward import FeedForward
from ossicle.layer.norm import LayerNorm
from ossicle.mixer.base import Mixer
from ossicle.ops.masking import gather_frames
from ossicle.ops.packing import Packing
from ossicle.ops.residual_norm import residual_norm


class Block(nn.Module, ABC):
    """Frames in, frames out, of one width.

    No Python branch depends on data or on chance, so a block compiles in place as one graph.

    Attributes:
        recompute: Whether training keeps nothing of the block but what goes in, and makes it again on the way back.
        drops_frames: Whether some of a row's frames may be left out: none of the others takes it for a neighbour.
        narrows: Whether its sizes differ from call to call, so that a graph for each would be too many.
        selects: Whether it can be told as ``read_BM`` which of its frames are read, and make no more than these.
    """

    recompute: bool = False
    drops_frames: bool = False
    narrows: bool = False
    selects: bool = False

    @abstractmethod
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        """One block on frames, (B, T, D)."""

    def packed(self, x_PD: Float[Tensor, "P D"], packing: Packing) -> Float[Tensor, "P D"]:
        """One block on utterances that lie end to end, none of which hears another. By padding, unless it can."""
        return packing.unpad(self(*packing.pad(x_PD)))


class TransformerBlock(Block):
    """A mixer and a feed-forward network, each with a residual and a layer norm; subclasses say where norms stand.

    The network maps each frame alone, so frames that nothing reads afterwards go through the mixer and no further.

    Args:
        mixer: Moves information between frames.
        dim: Model width (D).
        ffn_dim: Width inside the feed-forward network (F).
        dropout: Dropout of both residual branches.
        activation_dropout: Dropout inside the feed-forward network.
        norm_eps: What the norms add to the variance.
    """

    selects = True

    def __init__(
        self,
        mixer: Mixer,
        dim: int,
        ffn_dim: int,
        *,
        dropout: float,
        activation_dropout: float,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.drops_frames = not mixer.reads_order
        self.mixer_norm = LayerNorm(dim, norm_eps)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout=dropout, activation_dropout=activation_dropout)
        self.feed_forward_norm = LayerNorm(dim, norm_eps)

    @abstractmethod
    def mixed(self, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        """The half with the mixer, on frames in any layout, their width last, with ``mix`` as it is for that layout."""

    @abstractmethod
    def mapped(self, x: Tensor) -> Tensor:
        """The half with the feed-forward network."""

    @override
    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        read_BM: Int64[Tensor, "B M"] | None = None,
    ) -> Tensor:
        """One block on frames, (B, T, D); with ``read_BM``, those of them alone, (B, M, D)."""
        x_BTD = self.mixed(x_BTD, lambda y_BTD: self.mixer(y_BTD, valid_BT))
        return self.mapped(x_BTD if read_BM is None else gather_frames(x_BTD, read_BM))

    @override
    def packed(self, x_PD: Float[Tensor, "P D"], packing: Packing) -> Float[Tensor, "P D"]:
        x_PD = self.mixed(x_PD, lambda y_PD: self.mixer.packed(y_PD, packing.cu_seqlens, packing.max_frames))
        return self.mapped(x_PD)


@final
class PostNormBlock(TransformerBlock):
    """Norms after the residual sums, as in wav2vec 2.0 and HuBERT base (arXiv 1706.03762, section 3.1)."""

    @override
    def mixed(self, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        return self._normed(x, mix(x), self.mixer_norm, self.dropout)

    @override
    def mapped(self, x: Tensor) -> Tensor:
        return self._normed(x, self.feed_forward(x, drop=False), self.feed_forward_norm, self.feed_forward.dropout)

    def _normed(self, x: Tensor, branch: Tensor, norm: LayerNorm, dropout: Dropout) -> Tensor:
        probability = dropout.p if self.training else 0.0
        return residual_norm(x, branch, norm.weight, norm.bias, dropout=probability, epsilon=norm.eps)


@final
class PreNormBlock(TransformerBlock):
    """Norms before each branch, as in wav2vec 2.0 and HuBERT large (arXiv 2002.04745)."""

    @override
    def mixed(self, x: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        return x + self.dropout(mix(self.mixer_norm(x)))

    @override
    def mapped(self, x: Tensor) -> Tensor:
        return x + self.feed_forward(self.feed_forward_norm(x))
