"""SPIRAL's encoder: convolutions that shorten between groups of Transformer blocks (arXiv 2201.10207, section 3.3)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.batch import EncoderOutput
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int64
from ossicle.encoder.base import Encoder
from ossicle.encoder.block import PostNormBlock, PreNormBlock
from ossicle.encoder.stack import check_layer_drop, run_blocks
from ossicle.layer.convolution import ConvolutionPosition
from ossicle.layer.dropout import Dropout
from ossicle.layer.shortening import Shortening, shortened_clock
from ossicle.mixer.base import Mixer, MixerFactory, build_mixers


@dataclass(frozen=True, slots=True)
class Stage:
    """One rate of a progressive encoder.

    Args:
        convolutions: Channels, kernel (odd) and stride of each convolution before the blocks; the last one's channels
            are the width of the blocks.
        num_layers: Blocks at this rate.
        ffn_dim: Width inside their feed-forward networks.
        layer_drop: Probability with which one of them is skipped; None takes the encoder's.
    """

    convolutions: Sequence[Sequence[int]]
    num_layers: int
    ffn_dim: int
    layer_drop: float | None = None

    @property
    def dim(self) -> int:
        """Width of the blocks."""
        return self.convolutions[-1][0]


@dataclass(slots=True)
class _Skips:
    """What running the blocks of one stage asks of an encoder."""

    training: bool
    layer_drop: float


@final
class Progressive(Encoder):
    """Groups of blocks at falling rates and growing widths; a position convolution before each group.

    Args:
        mixer: Makes a mixer of a width, or all of them; widths differ, so attention takes ``head_dim``.
        input_dim: Width of the frames that come in.
        stages: The rates, from the highest: each a mapping with the fields of :class:`Stage`.
        norm_first: Whether norms stand before the branches or after them.
        dropout: Dropout of the input of each group and of both branches of every block.
        activation_dropout: Dropout inside the feed-forward networks.
        layer_drop: Probability with which a block is skipped for a whole batch in training; a stage may state its own.
        convolution_dropout: Dropout after the activations of the convolutions.
        last_activation: Whether the last convolution before each group has a ReLU: ESSL's has one, SPIRAL's none.
        position_kernel: Frames that the position convolutions see.
        position_groups: Groups of the position convolutions.

    Raises:
        ConfigError: No stage, a stage without a convolution, an even kernel, or a layer_drop that is no probability.
    """

    def __init__(
        self,
        mixer: MixerFactory,
        *,
        stages: Sequence[dict[str, object] | Stage],
        input_dim: int = 128,
        norm_first: bool = False,
        dropout: float = 0.1,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.05,
        convolution_dropout: float = 0.0,
        last_activation: bool = True,
        position_kernel: int = 128,
        position_groups: int = 16,
    ) -> None:
        super().__init__()
        self.stages = [stage if isinstance(stage, Stage) else Stage(**stage) for stage in stages]  # ty: ignore[invalid-argument-type]
        if not self.stages or not all(stage.convolutions for stage in self.stages):
            raise ConfigError("encoder.stages: every stage begins with a convolution", "give at least one of each")
        self._input_dim = input_dim
        self.dim = self.stages[-1].dim
        self.num_layers = sum(stage.num_layers for stage in self.stages)
        self.norm_first = norm_first
        self.layer_drop = check_layer_drop(layer_drop)
        self.stage_drops = [
            self.layer_drop if stage.layer_drop is None else check_layer_drop(stage.layer_drop) for stage in self.stages
        ]
        self.dropout = Dropout(dropout)
        self.factors = self._factors()
        widths = [stage.dim for stage in self.stages]
        mixers = build_mixers(mixer, [stage.dim for stage in self.stages for _ in range(stage.num_layers)])
        ffn_dims = [stage.ffn_dim for stage in self.stages for _ in range(stage.num_layers)]
        rates = {"dropout": dropout, "activation_dropout": activation_dropout}
        self.shorten = nn.ModuleList(
            Shortening(width, stage.convolutions, dropout=convolution_dropout, last_activation=last_activation)
            for width, stage in zip([input_dim, *widths[:-1]], self.stages, strict=True)
        )
        self.positions = nn.ModuleList(ConvolutionPosition(dim, position_kernel, position_groups) for dim in widths)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in widths)
        self.blocks = nn.ModuleList(
            self._block(one, stage_dim, ffn_dim, rates)
            for one, stage_dim, ffn_dim in zip(
                mixers, [s.dim for s in self.stages for _ in range(s.num_layers)], ffn_dims, strict=True
            )
        )

    def _factors(self) -> list[int]:
        """For what goes into the first block and for what each makes: every how many frames one of the output's is.

        Convolutions have their frames' centres in the middle of their kernels, so frames of one centre are meant.
        """
        strides = [math.prod(int(stride) for _, _, stride in stage.convolutions) for stage in self.stages]
        after = [math.prod(strides[place + 1 :]) for place in range(len(strides))]
        made = [factor for factor, stage in zip(after, self.stages, strict=True) for _ in range(stage.num_layers)]
        return [after[0], *made]

    def _block(self, mixer: Mixer, dim: int, ffn_dim: int, rates: dict[str, float]) -> nn.Module:
        block = PreNormBlock if self.norm_first else PostNormBlock
        return block(mixer, dim, ffn_dim, **rates)

    @property
    @override
    def input_dim(self) -> int:
        return self._input_dim

    @override
    def clock(self, features: FrameClock) -> FrameClock:
        for stage in self.stages:
            features = shortened_clock(features, stage.convolutions)
        return features

    @override
    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        *,
        kept_BM: Int64[Tensor, "B M"] | None = None,
        layers: bool = False,
    ) -> EncoderOutput:
        outputs: list[Tensor] = []
        blocks = list(self.blocks)
        for stage, layer_drop, shorten, position, norm in zip(
            self.stages, self.stage_drops, self.shorten, self.positions, self.norms, strict=True
        ):
            mine, blocks = blocks[: stage.num_layers], blocks[stage.num_layers :]
            x_BTD, valid_BT = shorten(x_BTD, valid_BT)
            if valid_BT is not None:
                x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
            x_BTD = x_BTD + position(x_BTD)
            x_BTD = self.dropout(x_BTD if self.norm_first else norm(x_BTD))
            if not outputs:
                outputs.append(x_BTD)
            mixed = list(run_blocks(_Skips(self.training, layer_drop), mine, x_BTD, valid_BT))
            outputs.extend(mixed)
            x_BTD = mixed[-1] if mixed else x_BTD
            x_BTD = norm(x_BTD) if self.norm_first else x_BTD
        slower = (output[:, ::factor] for output, factor in zip(outputs, self.factors, strict=True)) if layers else ()
        return EncoderOutput(x_BTD, tuple(slower))
