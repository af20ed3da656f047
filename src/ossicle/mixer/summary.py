"""A mean of frames in place of attention: SummaryMixing (arXiv 2307.07421)."""

from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.dropout import Dropout
from ossicle.layer.feed_forward import init_linear
from ossicle.layer.grouped import GroupedLinear
from ossicle.layer.multi_head import check_heads
from ossicle.mixer.base import Mixer
from ossicle.ops.gelu import linear_gelu
from ossicle.ops.summary import decaying_summary, mean_summary

KINDS: Final = ("mean", "fast", "lite")


@final
class Summary(Mixer):
    """Each frame joins what it says itself with what the row says on average: O(T) (arXiv 2307.07421, section 2).

    ``mean``: h_t = c([f(x_t), m]), m = mean over t of s(x_t), where f and s have a hidden layer with a GELU, of
    matrices that are block-diagonal in ``num_heads`` blocks, and c is a linear map and a GELU. ``fast``: f and s are
    the halves of one linear map and a GELU. ``lite``: the mean of s alone for every frame, for encoders that have
    another branch for what is near (Branchformer).

    A ``decay`` weighs the mean by the distance to each frame. In chunks, for streaming, a frame's mean ends with its
    own chunk: nothing is taken from later ones.

    Args:
        dim: Model width (D).
        kind: ``mean``, ``fast`` or ``lite``.
        num_heads: Blocks of the matrices of f and s; must divide both widths.
        hidden_dim: Width inside f and s; None for the model's.
        decay: Weight of a frame at a distance of one (0.995 in the paper's code), or None: all weigh the same.
        chunk: Frames of a chunk, or None: a mean takes in the whole row.
        left_chunks: Chunks before a frame's own in its mean; None for all.
        dropout: Dropout of what c takes.

    Raises:
        ConfigError: The kind is unknown, the heads do not divide a width, or numbers contradict each other.
    """

    def __init__(
        self,
        dim: int,
        *,
        kind: str = "mean",
        num_heads: int = 4,
        hidden_dim: int | None = None,
        decay: float | None = None,
        chunk: int | None = None,
        left_chunks: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"mixer.kind={kind} is no summary", f"choose from: {', '.join(KINDS)}")
        hidden = dim if hidden_dim is None else hidden_dim
        check_heads(dim, num_heads)
        check_heads(hidden, num_heads)
        _check_window(decay, chunk, left_chunks)
        self.kind = kind
        self.decay = decay
        self.chunk = chunk
        self.left_chunks = left_chunks
        self.reads_order = decay is not None or chunk is not None
        self.joint = init_linear(nn.Linear(dim, 2 * dim)) if kind == "fast" else None
        self.local = _Network(dim, hidden, num_heads) if kind == "mean" else None
        self.summary = None if kind == "fast" else _Network(dim, hidden, num_heads)
        self.dropout = Dropout(dropout)
        self.combine = None if kind == "lite" else init_linear(nn.Linear(2 * dim, dim))

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        if self.combine is None:
            assert self.summary is not None
            return self._mean(self.summary(x_BTD), valid_BT).expand(x_BTD.shape)
        if self.joint is not None:
            local_BTD, summed_BTD = functional.gelu(self.joint(x_BTD)).chunk(2, -1)
        else:
            assert self.local is not None
            assert self.summary is not None
            local_BTD, summed_BTD = self.local(x_BTD), self.summary(x_BTD)
        mean_BTD = self._mean(summed_BTD, valid_BT).expand(local_BTD.shape)
        both_BTE = self.dropout(torch.cat([local_BTD, mean_BTD], -1))
        if type(self.combine) is nn.Linear:
            return linear_gelu(both_BTE, self.combine.weight, self.combine.bias)
        return functional.gelu(self.combine(both_BTE))  # what stands in its place multiplies in another way

    def _mean(self, x_BTD: Tensor, valid_BT: Tensor | None) -> Tensor:
        """The mean that each frame is given, (B, T, D) or (B, 1, D)."""
        if self.decay is not None:
            return decaying_summary(x_BTD, self.decay, valid_BT, chunk=self.chunk).to(x_BTD.dtype)
        return mean_summary(x_BTD, valid_BT, chunk=self.chunk, left_chunks=self.left_chunks).to(x_BTD.dtype)


class _Network(nn.Sequential):
    """One hidden layer with a GELU, in blocks."""

    def __init__(self, dim: int, hidden: int, num_heads: int) -> None:
        super().__init__(GroupedLinear(dim, hidden, num_heads), nn.GELU(), GroupedLinear(hidden, dim, num_heads))

    @override
    def forward(self, input: Tensor) -> Tensor:
        first, _, second = self
        assert isinstance(first, GroupedLinear)
        return second(first.gelu(input))


def _check_window(decay: float | None, chunk: int | None, left_chunks: int | None) -> None:
    """Refuse windows that hold nothing or contradict each other."""
    if decay is not None and not 0 < decay < 1:
        raise ConfigError(f"mixer.decay={decay} is no weight of a neighbour", "give one between 0 and 1, or null")
    if chunk is not None and chunk < 1:
        raise ConfigError(f"mixer.chunk={chunk} holds no frame", "give at least 1, or null for the whole row")
    if left_chunks is not None and (chunk is None or decay is not None or left_chunks < 0):
        raise ConfigError(
            f"mixer.left_chunks={left_chunks} counts chunks where there are none",
            "set mixer.chunk and mixer.decay=null, or mixer.left_chunks=null",
        )
