"""Blocks at several rates, down and up again: MR-HuBERT (arXiv 2310.02720) and the hourglass (arXiv 2110.13711)."""

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Literal, final

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
from ossicle.layer.sampling import PooledSampling, SamplingFactory
from ossicle.mixer.base import MixerFactory, build_mixers
from ossicle.ops.pooling import repeat_frames


@final
class Hierarchical(Encoder):
    """Groups of blocks: the first ones each at a lower rate than the one before, the last ones back up again.

    Between groups ``sampling`` changes the rate; what left the group of the same rate on the way down is added on the
    way up. As it stands this is the hourglass; the authors of MR-HuBERT sample by convolutions, add the skip after the
    group and what comes into the lowest group to its output, and have norm and dropout in every group.

    A group's last layer is what leaves the group, with what is added to it there.

    Args:
        mixer: Makes a mixer of a width, or all of them: see :func:`~ossicle.mixer.base.build_mixers`.
        dim: Model width (D).
        layers_by_group: Blocks of each group, an odd number of groups: [4, 4, 4] is MR-HuBERT base.
        factors: Frames that become one between neighbouring groups, on the way down.
        sampling: Makes what changes the rate, of a width, ``up`` and ``down``.
        skip: Whether what left the group of the same rate is added "before" a group on the way up or "after" it. After
            it, a group hears all frames that the rate below makes: where the factor does not divide, up to factor - 1
            of them lie beyond the row's end, and are cut off for the sum.
        middle_residual: Whether what comes into the group at the lowest rate is added to what it makes.
        group_norms: Whether each group has a norm of its own, before its first block or, with norms first, after its
            last one, and dropout of what comes in; otherwise the first one alone has these, or the last one the norm.
        ffn_dim: Width inside the feed-forward networks (F).
        norm_first: Whether norms stand before the branches or after them.
        dropout: Dropout of the input and of both branches of every block.
        activation_dropout: Dropout inside the feed-forward networks.
        layer_drop: Probability with which a block is skipped for a whole batch in training.
        position_kernel: Frames that the position convolution sees.
        position_groups: Groups of the position convolution.

    Raises:
        ConfigError: Groups and factors that do not fit, another skip, or a layer_drop that is no probability.
    """

    def __init__(
        self,
        mixer: MixerFactory,
        *,
        dim: int = 768,
        layers_by_group: Sequence[int] = (4, 4, 4),
        factors: Sequence[int] = (2,),
        sampling: SamplingFactory = PooledSampling,
        skip: Literal["before", "after"] = "before",
        middle_residual: bool = False,
        group_norms: bool = False,
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
        if skip not in {"before", "after"}:
            raise ConfigError(f"encoder.skip={skip} names no place", "it is before or after")
        self.dim = dim
        self.num_layers = sum(layers_by_group)
        self.layers_by_group = tuple(layers_by_group)
        self.factors = tuple(factors)
        self.skips_after = skip == "after"
        self.middle_residual = middle_residual
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
        self.down = nn.ModuleList(sampling(dim=dim, up=1, down=factor) for factor in factors)
        self.up = nn.ModuleList(sampling(dim=dim, up=factor, down=1) for factor in factors)
        self.other_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * len(factors) if group_norms else 0))
        self.group_norms = group_norms

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
        num_frames, middle, last = x_BTD.shape[1], len(self.factors), 2 * len(self.factors)
        if valid_BT is not None:
            x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
        entered_BTD = x_BTD + self.position(x_BTD)
        outputs: list[Tensor] = []
        blocks, rate = list(self.blocks), 1
        left: list[tuple[Tensor, Tensor | None]] = []
        for group, count in enumerate(self.layers_by_group):
            mine, blocks = blocks[:count], blocks[count:]
            x_BTD = self._enter(group, entered_BTD)
            outputs = outputs or [x_BTD]
            made = list(run_blocks(self, mine, x_BTD, valid_BT))
            x_BTD = self._leave(group, made[-1] if made else x_BTD)
            if group == middle and self.middle_residual:
                x_BTD = entered_BTD + x_BTD
            if group > middle and self.skips_after:
                x_BTD, valid_BT = joined(left.pop(), x_BTD)
            if layers:
                outputs.extend(repeat_frames(x, rate, num_frames) for x in [*made[:-1], x_BTD][:count])
            if group < middle:
                left.append((x_BTD, valid_BT))
                rate *= self.factors[group]
                entered_BTD, valid_BT = self.down[group](x_BTD, valid_BT)
            elif group < last:
                place = last - group - 1
                rate //= self.factors[place]
                entered_BTD, valid_BT = self.up[place](x_BTD, valid_BT)
                if not self.skips_after:
                    entered_BTD, valid_BT = joined(left.pop(), entered_BTD)
        last_BTD = self.norm(x_BTD) if self.norm_first and not self.group_norms else x_BTD
        return EncoderOutput(last_BTD, tuple(outputs) if layers else ())

    def _enter(self, group: int, x_BTD: Tensor) -> Tensor:
        """What the first block of a group sees."""
        if group and not self.group_norms:
            return x_BTD
        return self.dropout(x_BTD if self.norm_first else self._norm(group)(x_BTD))

    def _leave(self, group: int, x_BTD: Tensor) -> Tensor:
        """What the last block of a group hands on."""
        return self._norm(group)(x_BTD) if self.group_norms and self.norm_first else x_BTD

    def _norm(self, group: int) -> nn.Module:
        """A group's own norm: the encoder's one belongs to the first group or, with norms first, to the last."""
        others = list(self.other_norms)
        return ([*others, self.norm] if self.norm_first else [self.norm, *others])[group]


def joined(left: tuple[Tensor, Tensor | None], x_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
    """What left a group on the way down, with what comes back to its rate added to it, and which frames are real."""
    before_BTD, valid_BT = left
    return before_BTD + x_BTD[:, : before_BTD.shape[1]], valid_BT
