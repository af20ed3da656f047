"""The feed-forward half of a Transformer block."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.shapes import Float
from ossicle.layer.dropout import Dropout
from ossicle.ops.gelu import linear_gelu

INIT_STD = 0.02


def init_linear(linear: nn.Linear) -> nn.Linear:
    """BERT's initial weights, N(0, 0.02), and no bias: what wav2vec 2.0 and HuBERT start from."""
    nn.init.normal_(linear.weight, std=INIT_STD)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def corner(linear: nn.Linear, x: Float[Tensor, "... I"], out_dim: int) -> Float[Tensor, "... O"]:
    """A linear map by the first rows and columns of its weight (arXiv 2203.15610, section 3.1)."""
    return functional.linear(x, linear.weight[:out_dim, : x.shape[-1]], linear.bias[:out_dim])


@final
class FeedForward(nn.Module):
    """Two linear maps with a GELU between (arXiv 1706.03762, equation 2).

    Args:
        dim: Model width (D).
        ffn_dim: Width inside (F).
        dropout: Dropout of the output.
        activation_dropout: Dropout inside.
    """

    def __init__(self, dim: int, ffn_dim: int, *, dropout: float = 0.0, activation_dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = init_linear(nn.Linear(dim, ffn_dim))
        self.inner_dropout = Dropout(activation_dropout)
        self.contract = init_linear(nn.Linear(ffn_dim, dim))
        self.dropout = Dropout(dropout)

    @override
    def forward(
        self, x_BTD: Float[Tensor, "B T D"], *, drop: bool = True, ffn_dim: int | None = None
    ) -> Float[Tensor, "B T D"]:
        """Map each frame alone.

        Args:
            x_BTD: Frames, shape (B, T, D).
            drop: Whether the output is dropped out here; False for a caller that does it with what follows.
            ffn_dim: The first so many units inside, on frames of any width up to the full one; None for the whole.
        """
        if ffn_dim is not None:
            wide_BTF = functional.gelu(corner(self.expand, x_BTD, ffn_dim))
            out_BTD = corner(self.contract, self.inner_dropout(wide_BTF), x_BTD.shape[-1])
            return self.dropout(out_BTD) if drop else out_BTD
        if type(self.expand) is nn.Linear:
            wide_BTF = linear_gelu(x_BTD, self.expand.weight, self.expand.bias)
        else:  # what stands in its place multiplies in another way, as in float8
            wide_BTF = functional.gelu(self.expand(x_BTD))
        out_BTD = self.contract(self.inner_dropout(wide_BTF))
        return self.dropout(out_BTD) if drop else out_BTD
