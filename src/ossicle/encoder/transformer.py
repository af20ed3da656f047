"""The Transformer encoder of wav2vec 2.0 and HuBERT around any token mixer (arXiv 2006.11477, sections 2 and 4.2)."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.batch import EncoderOutput
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int64
from ossicle.encoder.base import Encoder
from ossicle.layer.convolution import ConvolutionPosition
from ossicle.layer.feed_forward import FeedForward
from ossicle.mixer.base import Mixer, MixerFactory, build_mixers
from ossicle.ops.masking import gather_frames


class Block(nn.Module, ABC):
    """A mixer and a feed-forward network, each with a residual and a layer norm; subclasses say where norms stand.

    No Python branch depends on data or on chance, so a block compiles in place as one graph.

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

    @abstractmethod
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        """One block on frames, (B, T, D)."""


@final
class PostNormBlock(Block):
    """Norms after the residual sums, as in wav2vec 2.0 and HuBERT base (arXiv 1706.03762, section 3.1)."""

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        x_BTD = self.mixer_norm(x_BTD + self.dropout(self.mixer(x_BTD, valid_BT)))
        return self.feed_forward_norm(x_BTD + self.feed_forward(x_BTD))


@final
class PreNormBlock(Block):
    """Norms before each branch, as in wav2vec 2.0 and HuBERT large (arXiv 2002.04745)."""

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.mixer(self.mixer_norm(x_BTD), valid_BT))
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


@final
class Transformer(Encoder):
    """Convolutional positions, then blocks around a mixer.

    With norms after the branches, one more stands before the first block; with norms first, one more after the last.

    Args:
        mixer: Makes a mixer of a width, or all of them: see :func:`~ossicle.mixer.base.build_mixers`.
        dim: Model width (D).
        num_layers: Blocks (L).
        ffn_dim: Width inside the feed-forward networks (F).
        norm_first: Whether norms stand before the branches (large models) or after them (base models).
        dropout: Dropout of the input and of both branches of every block.
        activation_dropout: Dropout inside the feed-forward networks.
        layer_drop: Probability with which a block is skipped for a whole batch in training (arXiv 1909.11556).
        position_kernel: Frames that the position convolution sees.
        position_groups: Groups of the position convolution.

    Raises:
        ConfigError: If ``layer_drop`` is no probability below one.
    """

    drops_frames = True

    def __init__(
        self,
        mixer: MixerFactory,
        *,
        dim: int = 768,
        num_layers: int = 12,
        ffn_dim: int = 3072,
        norm_first: bool = False,
        dropout: float = 0.1,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.05,
        position_kernel: int = 128,
        position_groups: int = 16,
    ) -> None:
        super().__init__()
        if not 0 <= layer_drop < 1:
            raise ConfigError(f"encoder.layer_drop={layer_drop} is no probability", "it lies in [0, 1)")
        self.dim = dim
        self.num_layers = num_layers
        self.norm_first = norm_first
        self.layer_drop = layer_drop
        self.position = ConvolutionPosition(dim, position_kernel, position_groups)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        block = PreNormBlock if norm_first else PostNormBlock
        self.blocks = nn.ModuleList(
            block(one, dim, ffn_dim, dropout=dropout, activation_dropout=activation_dropout)
            for one in build_mixers(mixer, [dim] * num_layers)
        )

    @override
    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        *,
        kept_BM: Int64[Tensor, "B M"] | None = None,
        layers: bool = False,
    ) -> EncoderOutput:
        if valid_BT is not None:
            # The position convolution must see past an utterance's end what it sees there without padding: zeros.
            x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
        x_BTD = x_BTD + self.position(x_BTD)
        if kept_BM is not None:
            x_BTD = gather_frames(x_BTD, kept_BM)
            valid_BT = None if valid_BT is None else valid_BT.gather(1, kept_BM)
        x_BTD = self.dropout(x_BTD if self.norm_first else self.norm(x_BTD))
        outputs = [x_BTD]
        for block, kept in zip(self.blocks, self._draw_kept(), strict=True):
            if kept:
                x_BTD = block(x_BTD, valid_BT)
            if layers:
                outputs.append(x_BTD)
        last_BTD = self.norm(x_BTD) if self.norm_first else x_BTD
        return EncoderOutput(last_BTD, tuple(outputs) if layers else ())

    def _draw_kept(self) -> list[bool]:
        """Which blocks run. Drawn on the host from its default generator, so no device is waited for."""
        if not self.training or self.layer_drop == 0:
            return [True] * self.num_layers
        return (torch.rand(self.num_layers, device="cpu") >= self.layer_drop).tolist()
