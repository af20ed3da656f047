"""The Conformer around any token mixer (arXiv 2005.08100), as BEST-RQ and w2v-BERT use it."""

from typing import final

from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.shapes import Bool, Float, Int64
from ossicle.encoder.block import Block
from ossicle.encoder.stack import Stack
from ossicle.layer.convolution_module import ConvolutionModule
from ossicle.layer.dropout import Dropout
from ossicle.layer.feed_forward import FeedForward
from ossicle.layer.norm import LayerNorm
from ossicle.mixer.base import Mixer, MixerFactory, build_mixers
from ossicle.ops.masking import gather_frames


@final
class ConformerBlock(Block):
    """Half a feed-forward step, mixer, convolution, half a step, norm (arXiv 2005.08100, equation 1).

    The paper's feed-forward networks have a Swish; these have the GELU of this package's others.

    Args:
        mixer: Moves information between frames.
        dim: Model width (D).
        ffn_dim: Width inside the feed-forward networks (F).
        kernel: Frames that the convolution sees.
        dropout: Dropout of every branch.
        activation_dropout: Dropout inside the feed-forward networks.
    """

    selects = True

    def __init__(
        self, mixer: Mixer, dim: int, ffn_dim: int, *, kernel: int, dropout: float, activation_dropout: float
    ) -> None:
        super().__init__()
        self.first_norm = LayerNorm(dim)
        self.first = FeedForward(dim, ffn_dim, dropout=dropout, activation_dropout=activation_dropout)
        self.mixer_norm = LayerNorm(dim)
        self.mixer = mixer
        self.dropout = Dropout(dropout)
        self.convolution_norm = LayerNorm(dim)
        self.convolution = ConvolutionModule(dim, kernel, dropout)
        self.second_norm = LayerNorm(dim)
        self.second = FeedForward(dim, ffn_dim, dropout=dropout, activation_dropout=activation_dropout)
        self.norm = nn.LayerNorm(dim)  # in float32 under autocast too, as are the sums that begin with it

    @override
    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        read_BM: Int64[Tensor, "B M"] | None = None,
    ) -> Tensor:
        """One block on frames, (B, T, D); with ``read_BM``, those of them alone, (B, M, D)."""
        x_BTD = x_BTD + 0.5 * self.first(self.first_norm(x_BTD))
        x_BTD = x_BTD + self.dropout(self.mixer(self.mixer_norm(x_BTD), valid_BT))
        x_BTD = x_BTD + self.convolution(self.convolution_norm(x_BTD), valid_BT)
        if read_BM is not None:
            x_BTD = gather_frames(x_BTD, read_BM)
        x_BTD = x_BTD + 0.5 * self.second(self.second_norm(x_BTD))
        return self.norm(x_BTD)


@final
class Conformer(Stack):
    """Convolutional positions, then Conformer blocks.

    Args:
        mixer: Makes a mixer of a width, or all of them: see :func:`~ossicle.mixer.base.build_mixers`.
        dim: Model width (D).
        num_layers: Blocks (L).
        ffn_dim: Width inside the feed-forward networks (F).
        kernel: Frames that the convolutions see; odd.
        dropout: Dropout of the input and of every branch.
        activation_dropout: Dropout inside the feed-forward networks.
        layer_drop: Probability with which a block is skipped for a whole batch in training.
        position_kernel: Frames that the position convolution sees.
        position_groups: Groups of the position convolution.
    """

    def __init__(
        self,
        mixer: MixerFactory,
        *,
        dim: int = 576,
        num_layers: int = 12,
        ffn_dim: int = 2048,
        kernel: int = 31,
        dropout: float = 0.1,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.0,
        position_kernel: int = 128,
        position_groups: int = 16,
    ) -> None:
        mixers = build_mixers(mixer, [dim] * num_layers)
        rates = {"dropout": dropout, "activation_dropout": activation_dropout}
        super().__init__(
            [ConformerBlock(one, dim, ffn_dim, kernel=kernel, **rates) for one in mixers],
            dim=dim,
            norm_first=True,
            dropout=dropout,
            layer_drop=layer_drop,
            position_kernel=position_kernel,
            position_groups=position_groups,
        )
