"""The head that a student has and its teacher has not."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float
from ossicle.layer.dropout import Dropout


@final
class ConvolutionPredictor(nn.Module):
    """Convolutions over frames with norms and ReLUs between, then a linear map (arXiv 2201.10207, section 3.2).

    SPIRAL's norms are over the batch. These are of each frame, as ESSL's (2024.findings-eacl.23, in its authors' code),
    so that neither a loss nor a rank depends on what else is in a batch.

    Args:
        dim: Width of the frames and of the predictions.
        hidden_dim: Channels of the convolutions.
        kernel: Frames that each convolution sees; odd.
        num_layers: Convolutions.
        bias: Whether convolutions and linear map add a bias.
        dropout: Dropout after each of them, before its norm.
        last_activation: Whether a norm and a ReLU follow the linear map too, as in ESSL: no prediction is negative.

    Raises:
        ConfigError: The kernel is even.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int = 256,
        kernel: int = 5,
        num_layers: int = 2,
        bias: bool = True,
        dropout: float = 0.0,
        last_activation: bool = False,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ConfigError(f"a predictor's kernel of {kernel} has no centre", "give an odd kernel")
        self.convolutions = nn.ModuleList(
            nn.Conv1d(dim if number == 0 else hidden_dim, hidden_dim, kernel, padding=kernel // 2, bias=bias)
            for number in range(num_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(num_layers))
        self.project = nn.Linear(hidden_dim if num_layers else dim, dim, bias=bias)
        self.dropout = Dropout(dropout)
        self.last_norm = nn.LayerNorm(dim) if last_activation else None

    @override
    def forward(self, x_BTF: Float[Tensor, "B T F"]) -> Float[Tensor, "B T F"]:
        """Predictions for all frames."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x_BTF = functional.relu(norm(self.dropout(convolution(x_BTF.transpose(1, 2)).transpose(1, 2))))
        predicted: Tensor = self.project(x_BTF)
        return predicted if self.last_norm is None else functional.relu(self.last_norm(self.dropout(predicted)))
