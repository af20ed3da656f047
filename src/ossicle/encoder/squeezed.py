"""SEW: a Transformer at a fraction of the frame rate (arXiv 2109.06870, section 4.2)."""

import math
from typing import final

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from typing_extensions import override

from ossicle.core.batch import EncoderOutput
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int64
from ossicle.encoder.base import Encoder
from ossicle.encoder.block import PostNormBlock, PreNormBlock
from ossicle.encoder.stack import check_layer_drop, run_blocks
from ossicle.layer.convolution import TapNorm
from ossicle.layer.dropout import Dropout
from ossicle.layer.feed_forward import init_linear
from ossicle.mixer.base import MixerFactory, build_mixers
from ossicle.ops.pooling import pool_frames, repeat_frames


@final
class Squeezed(Encoder):
    """Positions by a strided convolution plus pooled frames, blocks at the lower rate, and a linear map back up.

    Frames that do not fill a group at a row's end are pooled alone, so that every frame comes out.

    Args:
        mixer: Makes a mixer of a width, or all of them: see :func:`~ossicle.mixer.base.build_mixers`.
        dim: Model width (D).
        num_layers: Blocks (L).
        ffn_dim: Width inside the feed-forward networks (F).
        squeeze: Frames that become one.
        norm_first: Whether norms stand before the branches or after them.
        entry_norm: Whether a norm and dropout stand before the first block, where norms stand after the branches: SEW
            has them, SEW-D's DeBERTa has neither.
        norm_eps: What the norms add to the variance.
        dropout: Dropout of the input and of both branches of every block.
        activation_dropout: Dropout inside the feed-forward networks.
        layer_drop: Probability with which a block is skipped for a whole batch in training.
        position_kernel: Frames that the position convolution sees.
        position_groups: Groups of the position convolution.

    Raises:
        ConfigError: A squeeze below one, groups that do not divide the width, or a layer_drop that is no probability.
    """

    def __init__(
        self,
        mixer: MixerFactory,
        *,
        dim: int = 768,
        num_layers: int = 12,
        ffn_dim: int = 3072,
        squeeze: int = 2,
        norm_first: bool = False,
        entry_norm: bool = True,
        norm_eps: float = 1e-5,
        dropout: float = 0.1,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.05,
        position_kernel: int = 31,
        position_groups: int = 16,
    ) -> None:
        super().__init__()
        if squeeze < 1 or dim % position_groups:
            raise ConfigError(
                f"encoder.squeeze={squeeze} with {position_groups} position groups of a width of {dim} is impossible",
                "squeeze is 1 or more, and position_groups divides the width",
            )
        self.dim = dim
        self.num_layers = num_layers
        self.squeeze = squeeze
        self.norm_first = norm_first
        self.layer_drop = check_layer_drop(layer_drop)
        position = nn.Conv1d(dim, dim, position_kernel, squeeze, padding=position_kernel // 2, groups=position_groups)
        nn.init.normal_(position.weight, std=math.sqrt(4 / (position_kernel * dim)))
        assert position.bias is not None
        nn.init.zeros_(position.bias)
        parametrize.register_parametrization(position, "weight", TapNorm())
        self.position = position
        self.norm = nn.LayerNorm(dim, norm_eps) if norm_first or entry_norm else nn.Identity()
        self.dropout = Dropout(dropout if norm_first or entry_norm else 0.0)
        block = PreNormBlock if norm_first else PostNormBlock
        self.blocks = nn.ModuleList(
            block(one, dim, ffn_dim, dropout=dropout, activation_dropout=activation_dropout, norm_eps=norm_eps)
            for one in build_mixers(mixer, [dim] * num_layers)
        )
        self.upsample = init_linear(nn.Linear(dim, squeeze * dim))

    @override
    def layer_factor(self, layer: int) -> int:
        return self.squeeze

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
        pooled_BUD = pool_frames(x_BTD, self.squeeze, valid_BT)
        position_BDU = self.position(x_BTD.transpose(1, 2))[..., : pooled_BUD.shape[1]]
        x_BUD = pooled_BUD + functional.gelu(position_BDU).transpose(1, 2)
        x_BUD = self.dropout(x_BUD if self.norm_first else self.norm(x_BUD))
        outputs = [
            x_BUD,
            *run_blocks(self, self.blocks, x_BUD, None if valid_BT is None else valid_BT[:, :: self.squeeze]),
        ]
        last_BUD = self.norm(outputs[-1]) if self.norm_first else outputs[-1]
        last_BTD = functional.gelu(self.upsample(last_BUD)).unflatten(2, (self.squeeze, -1)).flatten(1, 2)
        repeated = (repeat_frames(x, self.squeeze, num_frames) for x in outputs) if layers else ()
        return EncoderOutput(last_BTD[:, :num_frames], tuple(repeated))
