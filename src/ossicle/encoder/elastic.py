"""LightHuBERT's supernet: a Transformer whose parts can be narrowed, all sizes sharing weights (arXiv 2203.15610)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.batch import EncoderOutput
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int64
from ossicle.encoder.base import Encoder
from ossicle.encoder.block import Block
from ossicle.encoder.stack import run_blocks
from ossicle.layer.convolution import ConvolutionPosition
from ossicle.layer.dropout import Dropout
from ossicle.layer.feed_forward import FeedForward, corner
from ossicle.layer.norm import LayerNorm
from ossicle.mixer.attention import Attention
from ossicle.mixer.base import MixerFactory, build_mixers
from ossicle.ops.attention import attend


@dataclass(frozen=True, slots=True)
class Subnet:
    """One size of an elastic encoder: the first so many of everything.

    Args:
        dim: Width of the frames.
        num_heads: Heads of each block; as many blocks are run.
        ffn_dims: Width inside the feed-forward network of each block.
    """

    dim: int
    num_heads: tuple[int, ...]
    ffn_dims: tuple[int, ...]


class ElasticBlock(Block):
    """A Transformer block with norms after the branches, of which a corner of every weight is used.

    Args:
        mixer: Attention at the full size.
        dim: Full width (D).
        ffn_dim: Full width inside the feed-forward network (F).
        dropout: Dropout of both branches.
    """

    narrows = True

    def __init__(self, mixer: Attention, dim: int, ffn_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.mixer = mixer
        self.mixer_norm = LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ffn_dim)
        self.feed_forward_norm = LayerNorm(dim)
        self.dropout = Dropout(dropout)

    @override
    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        num_heads: int | None = None,
        ffn_dim: int | None = None,
    ) -> Tensor:
        """One block on frames, (B, T, D), by its first heads and the first units of its feed-forward network.

        Sizes are arguments and no attributes, which torch.compile would take for constants.

        Args:
            x_BTD: Frames of any width up to the full one.
            valid_BT: True where a frame is real, or None where every frame is.
            num_heads: Heads; None for all.
            ffn_dim: Width inside the feed-forward network; None for all of it.
        """
        num_heads = self.mixer.num_heads if num_heads is None else num_heads
        ffn_dim = self.feed_forward.expand.out_features if ffn_dim is None else ffn_dim
        dim, inner = x_BTD.shape[-1], num_heads * self.mixer.head_dim
        mixer = self.mixer
        q_BTHK, k_BTHK, v_BTHK = (
            corner(linear, x_BTD, inner).unflatten(-1, (num_heads, mixer.head_dim))
            for linear in (mixer.query, mixer.key, mixer.value)
        )
        dropout = mixer.dropout if self.training else 0.0
        mixed = attend(q_BTHK, k_BTHK, v_BTHK, valid_BT=valid_BT, dropout=dropout, backend=mixer.backend).flatten(2)
        x_BTD = corner_norm(self.mixer_norm, x_BTD + self.dropout(corner(mixer.out, mixed, dim)))
        mapped = self.feed_forward(x_BTD, drop=False, ffn_dim=ffn_dim)
        return corner_norm(self.feed_forward_norm, x_BTD + self.dropout(mapped))


def corner_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A layer norm over the width that is there."""
    dim = x.shape[-1]
    return functional.layer_norm(x, (dim,), norm.weight[:dim], norm.bias[:dim], norm.eps)


@final
class Elastic(Encoder):
    """Sizes by the billion in one set of weights; in training every batch draws one, in evaluation the chosen one runs.

    What comes out has the full width; a narrower subnet leaves the rest at zero.

    Args:
        mixer: Makes attention of the full width: nothing else is sliced.
        dims: Widths to choose from; the largest is the model's.
        heads: Heads to choose from, for every block alone.
        ffn_ratios: Widths inside the feed-forward networks over the frames' width, for every block alone.
        depths: Blocks to choose from.
        dropout: Dropout of the input and of both branches of every block.
        position_kernel: Frames that the position convolution sees.
        position_groups: Groups of the position convolution; every width is a multiple of a group's.

    Attributes:
        draws_sizes: Whether training draws a size; a teacher's copy runs the chosen one, all of it unless told.

    Raises:
        ConfigError: Choices that are empty or do not divide, or a mixer that is not attention.
    """

    drops_frames = True

    def __init__(
        self,
        mixer: MixerFactory,
        *,
        dims: Sequence[int] = (512, 640, 768),
        heads: Sequence[int] = (8, 10, 12),
        ffn_ratios: Sequence[float] = (3.5, 4.0),
        depths: Sequence[int] = (12,),
        dropout: float = 0.1,
        position_kernel: int = 128,
        position_groups: int = 6,
    ) -> None:
        super().__init__()
        if not (dims and heads and ffn_ratios and depths):
            raise ConfigError("encoder: dims, heads, ffn_ratios or depths is empty", "give one choice of each at least")
        self.dims, self.heads, self.depths = tuple(dims), tuple(heads), tuple(depths)
        self.ffn_ratios = tuple(ffn_ratios)
        self.dim, self.num_layers = max(self.dims), max(self.depths)
        ffn_dim = round(max(self.ffn_ratios) * self.dim)
        mixers = build_mixers(mixer, [self.dim] * self.num_layers)
        attentions = [one for one in mixers if isinstance(one, Attention) and one.num_heads == max(self.heads)]
        if len(attentions) < len(mixers):
            raise ConfigError(
                f"encoder=elastic slices attention with {max(self.heads)} heads",
                f"set mixer=attention mixer.num_heads={max(self.heads)}",
            )
        group = self.dim // position_groups
        if any(dim % group for dim in self.dims):
            raise ConfigError(
                f"encoder.dims={list(self.dims)} are no multiples of {group}, a group of the position convolution",
                f"set encoder.position_groups={self.dim // math.gcd(*self.dims)}",
            )
        self.group = group
        self.position = ConvolutionPosition(self.dim, position_kernel, position_groups)
        self.norm = LayerNorm(self.dim)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(ElasticBlock(one, self.dim, ffn_dim, dropout=dropout) for one in attentions)
        self.chosen = self.largest()
        self.draws_sizes = True

    def largest(self) -> Subnet:
        """The subnet that is the whole."""
        depth = max(self.depths)
        ffn_dim = round(max(self.ffn_ratios) * self.dim)
        return Subnet(self.dim, (max(self.heads),) * depth, (ffn_dim,) * depth)

    def draw(self) -> Subnet:
        """A subnet drawn alike over all choices, on the host from its default generator."""

        def pick(count: int, choices: Sequence[float]) -> list[float]:
            return [choices[place] for place in torch.randint(len(choices), (count,), device="cpu").tolist()]

        depth, dim = int(pick(1, self.depths)[0]), int(pick(1, self.dims)[0])
        heads = tuple(int(count) for count in pick(depth, self.heads))
        return Subnet(dim, heads, tuple(round(ratio * dim) for ratio in pick(depth, self.ffn_ratios)))

    def choose(self, subnet: Subnet) -> None:
        """Run this subnet in evaluation from now on.

        Raises:
            ConfigError: It is larger than the whole, or of a width that cuts a group of the position convolution.
        """
        whole = self.largest()
        fits = len(subnet.num_heads) == len(subnet.ffn_dims) <= self.num_layers and subnet.dim % self.group == 0
        pairs = ((subnet.num_heads, whole.num_heads), (subnet.ffn_dims, whole.ffn_dims), ((subnet.dim,), (whole.dim,)))
        if not fits or any(mine > most for some, all_ in pairs for mine, most in zip(some, all_, strict=False)):
            raise ConfigError(f"{subnet} is no part of {whole}", "choose from the encoder's dims, heads and ffn_ratios")
        self.chosen = subnet

    @override
    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        *,
        kept_BM: Int64[Tensor, "B M"] | None = None,
        layers: bool = False,
    ) -> EncoderOutput:
        subnet = self.draw() if self.training and self.draws_sizes else self.chosen
        if valid_BT is not None:
            x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
        x_BTE = x_BTD[..., : subnet.dim]
        x_BTE = x_BTE + self.position.first(x_BTE)
        if kept_BM is not None:
            x_BTE = x_BTE.gather(1, kept_BM[..., None].expand(-1, -1, subnet.dim))
            valid_BT = None if valid_BT is None else valid_BT.gather(1, kept_BM)
        x_BTE = self.dropout(corner_norm(self.norm, x_BTE))
        sizes = list(zip(subnet.num_heads, subnet.ffn_dims, strict=True))
        outputs = [x_BTE, *run_blocks(self, list(self.blocks)[: len(sizes)], x_BTE, valid_BT, sizes=sizes)]
        missing = self.num_layers + 1 - len(outputs)
        widened = [functional.pad(x, (0, self.dim - subnet.dim)) for x in outputs[0 if layers else -1 :]]
        return EncoderOutput(widened[-1], tuple(widened + [widened[-1]] * missing) if layers else ())
