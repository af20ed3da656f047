"""wav2vec's context network: causal convolutions with residuals, and no mixer (arXiv 1904.05862, section 3.1)."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.batch import EncoderOutput
from ossicle.core.shapes import Bool, Float, Int64
from ossicle.encoder.base import Encoder
from ossicle.encoder.block import Block
from ossicle.layer.dropout import Dropout
from ossicle.mixer.base import MixerFactory


@final
class CausalBlock(Block):
    """Causal convolution, norm, ReLU, residual.

    The norm is a layer norm of each frame. The published one normalises over time as well, and so lets a frame hear
    what comes after it, which is what it is trained to foresee.

    Args:
        dim: Width (D).
        kernel: Frames up to and with its own that a frame sees.
        dropout: Dropout of the branch.
    """

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.kernel = kernel
        self.convolution = nn.Conv1d(dim, dim, kernel)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        past_BDT = functional.pad(x_BTD.transpose(1, 2), (self.kernel - 1, 0))
        mixed_BTD = self.norm(self.convolution(past_BDT).transpose(1, 2))
        return x_BTD + self.dropout(functional.relu(mixed_BTD))


@final
class Convolutional(Encoder):
    """A stack of causal convolutions. A frame hears the frames before it alone.

    Args:
        mixer: Not asked for anything: this encoder mixes by its convolutions, whatever ``mixer=`` says.
        dim: Width (D).
        num_layers: Convolutions (L).
        kernel: Frames of each.
        dropout: Dropout of every branch.
    """

    causal = True

    def __init__(
        self, mixer: MixerFactory, *, dim: int = 512, num_layers: int = 9, kernel: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        del mixer
        self.dim = dim
        self.num_layers = num_layers
        self.blocks = nn.ModuleList(CausalBlock(dim, kernel, dropout) for _ in range(num_layers))

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
        outputs: list[torch.Tensor] = [x_BTD]
        for block in self.blocks:
            outputs.append(block(outputs[-1], valid_BT))
        return EncoderOutput(outputs[-1], tuple(outputs) if layers else ())
