"""What fills in masked frames after an encoder that saw the others alone."""

from abc import ABC, abstractmethod
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float, Int64
from ossicle.layer.dropout import Dropout


class Decoder(nn.Module, ABC):
    """Predicts frames of a width for all places of a row from the frames at some of them."""

    @abstractmethod
    def forward(
        self,
        kept_BMD: Float[Tensor, "B M D"],
        kept_BM: Int64[Tensor, "B M"],
        frames: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "B T O"]:
        """Predict all places.

        Args:
            kept_BMD: Encoded frames.
            kept_BM: Where they stood, each place at most once in a row.
            frames: Places of a row (T).
            generator: Source of what stands in the places of the others, on the frames' device.
        """


@runtime_checkable
class DecoderFactory(Protocol):
    """Builds a decoder once the widths are known."""

    def __call__(self, *, dim: int, out_dim: int) -> Decoder:
        """A decoder from frames of one width to predictions of another."""
        ...


@final
class ConvolutionDecoder(Decoder):
    """Grouped convolutions over the whole row, noise where nothing was encoded (arXiv 2212.07525, section 3.2).

    Each layer is a convolution, a norm of each frame without weights and a GELU, with a residual where widths allow.

    Args:
        dim: Width of the encoder's frames (D).
        out_dim: Width of the predictions (O).
        hidden_dim: Channels of the convolutions.
        kernel: Frames that each convolution sees; odd.
        groups: Groups of channels that do not mix.
        num_layers: Convolutions.
        dropout: Dropout of the encoded frames.
        noise_std: Standard deviation of the noise.

    Raises:
        ConfigError: An even kernel, or groups that do not divide a width.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 384,
        kernel: int = 7,
        groups: int = 16,
        num_layers: int = 4,
        dropout: float = 0.1,
        noise_std: float = 0.01,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or dim % groups or hidden_dim % groups:
            raise ConfigError(
                f"a decoder of kernel {kernel} and {groups} groups on widths {dim} and {hidden_dim}",
                "give an odd kernel, and groups that divide both widths",
            )
        self.dropout = Dropout(dropout)
        self.noise_std = noise_std
        self.convolutions = nn.ModuleList(
            nn.Conv1d(dim if number == 0 else hidden_dim, hidden_dim, kernel, padding=kernel // 2, groups=groups)
            for number in range(num_layers)
        )
        self.project = nn.Linear(hidden_dim if num_layers else dim, out_dim)

    @override
    def forward(
        self,
        kept_BMD: Float[Tensor, "B M D"],
        kept_BM: Int64[Tensor, "B M"],
        frames: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "B T O"]:
        rows, _, dim = kept_BMD.shape
        noise = torch.randn(rows, frames, dim, generator=generator, device=kept_BMD.device) * self.noise_std
        places = kept_BM.unsqueeze(-1).expand(-1, -1, dim)
        x_BTD = noise.to(kept_BMD.dtype).scatter(1, places, self.dropout(kept_BMD))
        for convolution in self.convolutions:
            made_BTD = convolution(x_BTD.transpose(1, 2)).transpose(1, 2)
            made_BTD = functional.gelu(functional.layer_norm(made_BTD, made_BTD.shape[-1:]))
            x_BTD = x_BTD + made_BTD if made_BTD.shape == x_BTD.shape else made_BTD
        predicted: Tensor = self.project(x_BTD)
        return predicted
