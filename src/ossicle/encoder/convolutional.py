"""wav2vec's context network: causal convolutions, and no mixer (arXiv 1904.05862, section 3.1)."""

import math
from typing import final

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.batch import EncoderOutput
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int64
from ossicle.encoder.base import Encoder
from ossicle.encoder.block import Block
from ossicle.encoder.stack import run_blocks
from ossicle.layer.dropout import Dropout
from ossicle.mixer.base import MixerFactory


@final
class CausalBlock(Block):
    """Causal convolution, norm, ReLU, and a residual where there is one.

    The norm is a layer norm of each frame. The published one normalises over time as well, and so lets a frame hear
    what comes after it, which is what it is trained to foresee.

    Args:
        dim: Width (D).
        kernel: Frames up to and with its own that a frame sees.
        dropout: Dropout of the branch.
        residual_scale: What goes in is added to the branch, and the sum is multiplied by the root of this; None adds
            nothing.
    """

    def __init__(self, dim: int, kernel: int, dropout: float, residual_scale: float | None) -> None:
        super().__init__()
        self.kernel = kernel
        self.scale = None if residual_scale is None else math.sqrt(residual_scale)
        self.convolution = nn.Conv1d(dim, dim, kernel)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        past_BDT = functional.pad(x_BTD.transpose(1, 2), (self.kernel - 1, 0))
        mixed_BTD = self.norm(self.convolution(past_BDT).transpose(1, 2))
        branch_BTD = self.dropout(functional.relu(mixed_BTD))
        return branch_BTD if self.scale is None else self.scale * (x_BTD + branch_BTD)


@final
class Convolutional(Encoder):
    """A stack of causal convolutions. A frame hears the frames before it alone.

    Args:
        mixer: Not asked for anything: this encoder mixes by its convolutions, whatever ``mixer=`` says.
        dim: Width (D).
        num_layers: Convolutions (L).
        kernel: Frames that the first sees.
        kernel_growth: Frames by which each sees more than the one before it.
        dropout: Dropout of every branch.
        residual_scale: What goes into a convolution is added to what comes out, and the sum multiplied by the root of
            this; None adds nothing, as in the paper's smaller network.

    Raises:
        ConfigError: A convolution that sees no frame, or a scale that is not above 0.
    """

    causal = True

    def __init__(
        self,
        mixer: MixerFactory,
        *,
        dim: int = 512,
        num_layers: int = 9,
        kernel: int = 3,
        kernel_growth: int = 0,
        dropout: float = 0.0,
        residual_scale: float | None = 1.0,
    ) -> None:
        super().__init__()
        del mixer
        kernels = [kernel + layer * kernel_growth for layer in range(num_layers)]
        if min(kernels, default=1) < 1:
            raise ConfigError(
                f"encoder.kernel={kernel} with kernel_growth={kernel_growth} makes kernels of {kernels} frames",
                "a convolution sees one frame or more",
            )
        if residual_scale is not None and residual_scale <= 0:
            raise ConfigError(
                f"encoder.residual_scale={residual_scale} leaves nothing", "give more than 0, or null for no residual"
            )
        self.dim = dim
        self.num_layers = num_layers
        self.blocks = nn.ModuleList(CausalBlock(dim, one, dropout, residual_scale) for one in kernels)

    @override
    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        *,
        kept_BM: Int64[Tensor, "B M"] | None = None,
        layers: bool = False,
    ) -> EncoderOutput:
        # what follows a row's end is never heard, so padding needs no mask
        outputs = [x_BTD, *run_blocks(self, self.blocks, x_BTD, valid_BT)]
        return EncoderOutput(outputs[-1], tuple(outputs) if layers else ())
