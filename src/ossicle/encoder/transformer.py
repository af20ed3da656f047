"""The Transformer encoder of wav2vec 2.0 and HuBERT around any token mixer (arXiv 2006.11477, sections 2 and 4.2)."""

from typing import final

from ossicle.encoder.block import PostNormBlock, PreNormBlock
from ossicle.encoder.stack import Stack
from ossicle.mixer.base import MixerFactory, build_mixers


@final
class Transformer(Stack):
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
        position_layers: Position convolutions, one after the other: above 1, data2vec's.

    Raises:
        ConfigError: If ``layer_drop`` is no probability below one.
    """

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
        position_layers: int = 1,
    ) -> None:
        block = PreNormBlock if norm_first else PostNormBlock
        mixers = build_mixers(mixer, [dim] * num_layers)
        super().__init__(
            [block(one, dim, ffn_dim, dropout=dropout, activation_dropout=activation_dropout) for one in mixers],
            dim=dim,
            norm_first=norm_first,
            dropout=dropout,
            layer_drop=layer_drop,
            position_kernel=position_kernel,
            position_groups=position_groups,
            position_layers=position_layers,
        )
