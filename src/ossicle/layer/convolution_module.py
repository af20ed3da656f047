"""The Conformer's convolution module (arXiv 2005.08100, section 2.2)."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.dropout import Dropout
from ossicle.layer.feed_forward import init_linear


@final
class ConvolutionModule(nn.Module):
    """Pointwise map and gate, depthwise convolution over time, norm, Swish, pointwise map.

    The norm is a layer norm, as in speech encoders trained without labels since (w2v-BERT 2.0), where the paper has a
    batch norm: a frame then depends on no other utterance of its batch.

    Args:
        dim: Model width (D).
        kernel: Frames that the depthwise convolution sees; odd.
        dropout: Dropout of the output.

    Raises:
        ConfigError: The kernel is even, and no frame would be its centre.
    """

    def __init__(self, dim: int, kernel: int = 31, dropout: float = 0.1) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ConfigError(
                f"encoder.kernel={kernel} has no centre", f"give an odd one: {kernel - 1} or {kernel + 1}"
            )
        self.gate = init_linear(nn.Linear(dim, 2 * dim))
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.out = init_linear(nn.Linear(dim, dim))
        self.dropout = Dropout(dropout)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        """Convolve frames; those that are not real are heard as zeros, as is what lies beyond a row's end."""
        gated_BTD = functional.glu(self.gate(x_BTD))
        if valid_BT is not None:
            gated_BTD = gated_BTD.masked_fill(~valid_BT[..., None], 0)
        mixed_BTD = self.depthwise(gated_BTD.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.out(functional.silu(self.norm(mixed_BTD))))
