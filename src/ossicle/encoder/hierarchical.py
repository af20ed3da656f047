"""Blocks at several rates, down and up again: MR-HuBERT (arXiv 2310.02720) and the hourglass (arXiv 2110.13711)."""

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import final

from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.batch import EncoderOutput
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int64
from ossicle.encoder.base import Encoder
from ossicle.encoder.block import PostNormBlock, PreNormBlock
from ossicle.encoder.stack import check_layer_drop, run_blocks
from ossicle.layer.convolution import ConvolutionPosition
from ossicle.layer.dropout import Dropout
from ossicle.layer.feed_forward import init_linear
from ossicle.mixer.base import MixerFactory, build_mixers
from ossicle.ops.pooling import pool_frames, repeat_frames


@final
class Hierarchical(Encoder):
    """Groups of blocks: the first ones each at a lower rate than the one before, the last ones back up again.

    On the way down, frames are pooled and mapped; on the way up, mapped and repeated, and added to what left the group
    of the same rate.

    Args:
        mixer: Makes a mixer of a width, or all of them: see :func:`~ossicle.mixer.base.build_mixers`.
        dim: Model width (D).
        layers_by_group: Blocks of each group, an odd number of groups: [4, 4, 4] is MR-HuBERT base.
        factors: Frames that become one between neighbouring groups, on the way down.
        ffn_dim: Width inside the feed-forward networks (F).
        norm_first: Whether norms stand before the branches or after them.
        dropout: Dropout of the input and of both branches of every block.
        activation_dropout: Dropout inside the feed-forward networks.
        layer_drop: Probability with which a block is skipped for a whole batch in training.
        position_kernel: Frames that the position convolution sees.
        position_groups: Groups of the position convolution.

    Raises:
        ConfigError: Groups and factors that do not fit, or a layer_drop that is no probability.
    """

    def __init__(
        self,
        mixer: MixerFactory,
        *,
        dim: int = 768,
        layers_by_group: Sequence[int] = (4, 4, 4),
        factors: Sequence[int] = (2,),
        ffn_dim: int = 3072,
        norm_first: bool = False,
        dropout: float = 0.1,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.05,
        position_kernel: int = 128,
        position_groups: int = 16,
    ) -> None:
        super().__init__()
        if len(layers_by_group) != 2 * len(factors) + 1 or min(factors, default=1) < 1:
            raise ConfigError(
                f"encoder.layers_by_group has {len(layers_by_group)} groups for {len(factors)} factors",
                f"{len(factors)} positive factors join {2 * len(factors) + 1} groups",
            )
        self.dim = dim
        self.num_layers = sum(layers_by_group)
        self.layers_by_group = tuple(layers_by_group)
        self.factors = tuple(factors)
        self.norm_first = norm_first
        self.layer_drop = check_layer_drop(layer_drop)
        self.position = ConvolutionPosition(dim, position_kernel, position_groups)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)
        block = PreNormBlock if norm_first else PostNormBlock
        self.blocks = nn.ModuleList(
            block(one, dim, ffn_dim, dropout=dropout, activation_dropout=activation_dropout)
            for one in build_mixers(mixer, [dim] * self.num_layers)
        )
        self.down = nn.ModuleList(init_linear(nn.Linear(dim, dim)) for _ in factors)
        self.up = nn.ModuleList(init_linear(nn.Linear(dim, dim)) for _ in factors)

    @override
    def layer_factor(self, layer: int) -> int:
        edges = list(accumulate(self.layers_by_group))
        group = 0 if layer == 0 else next(place for place, edge in enumerate(edges) if layer <= edge)
        return prod(self.factors[: min(group, len(edges) - 1 - group)])

    @override
    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        *,
        kept_BM: Int64[Tensor, "B M"] | None = None,
        layers: bool = False,
    ) -> EncoderOutput:
        num_frames = x_BTD.shape[1]
        if valid_BT is not None:
            x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
        x_BTD = x_BTD + self.position(x_BTD)
        x_BTD = self.dropout(x_BTD if self.norm_first else self.norm(x_BTD))
        outputs, rate = [x_BTD], 1
        blocks = list(self.blocks)
        left: list[tuple[Tensor, Tensor | None]] = []
        for group, count in enumerate(self.layers_by_group):
            mine, blocks = blocks[:count], blocks[count:]
            made = list(run_blocks(self, mine, x_BTD, valid_BT))
            x_BTD = made[-1] if made else x_BTD
            outputs.extend(made if rate == 1 or not layers else (repeat_frames(x, rate, num_frames) for x in made))
            if group < len(self.factors):
                left.append((x_BTD, valid_BT))
                factor = self.factors[group]
                x_BTD, valid_BT = self._descend(group, x_BTD, valid_BT)
                rate *= factor
            elif left:
                place = len(left) - 1
                before_BTD, valid_BT = left.pop()
                raised_BTD = repeat_frames(self.up[place](x_BTD), self.factors[place], before_BTD.shape[1])
                x_BTD = before_BTD + raised_BTD
                rate //= self.factors[place]
        last_BTD = self.norm(x_BTD) if self.norm_first else x_BTD
        return EncoderOutput(last_BTD, tuple(outputs) if layers else ())

    def _descend(self, group: int, x_BTD: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        factor = self.factors[group]
        if valid_BT is not None:
            x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
        pooled_BUD = pool_frames(x_BTD, factor, valid_BT)
        return self.down[group](pooled_BUD), None if valid_BT is None else valid_BT[:, ::factor]
