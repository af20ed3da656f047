"""Heads that turn encoded frames into logits of classes."""

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float


class Head(nn.Module, ABC):
    """Scores classes for frames.

    Args:
        dim: Width of the frames (D).
        num_classes: Classes (V).
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.dim = dim
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, x_PD: Float[Tensor, "P D"]) -> Float[Tensor, "P V"]:
        """Float32 logits (P, V) of frames gathered into one list (P, D)."""


@runtime_checkable
class HeadFactory(Protocol):
    """Builds a head once the model's width and the target's classes are known."""

    def __call__(self, *, dim: int, num_classes: int) -> Head:
        """A head from frames of this width to this many classes."""
        ...


class LinearHead(Head):
    """One linear layer (arXiv 2202.01855, section 3.2; arXiv 2211.09944).

    Args:
        dim: Width of the frames (D).
        num_classes: Classes (V).
        temperature: Divides the logits, in float32 under autocast too: 0.1 in Fast-HuBERT's code (arXiv 2309.13860).

    Raises:
        ConfigError: The temperature is not above 0.
    """

    def __init__(self, dim: int, num_classes: int, temperature: float = 1.0) -> None:
        super().__init__(dim, num_classes)
        if temperature <= 0:
            raise ConfigError(f"objective.head.temperature={temperature} is not above 0", "1.0 leaves logits alone")
        self.temperature = temperature
        self.project = nn.Linear(dim, num_classes)

    @override
    def forward(self, x_PD: Float[Tensor, "P D"]) -> Float[Tensor, "P V"]:
        logits: Tensor = self.project(x_PD)
        return logits.float() if self.temperature == 1 else logits.float() / self.temperature


class CosineHead(Head):
    """Cosine similarity of projected frames with learned class embeddings (arXiv 2106.07447, equation 3).

    Norms, similarities and their division by the temperature are float32 under autocast too.

    Args:
        dim: Width of the frames (D).
        num_classes: Classes (V).
        final_dim: Width in which frames and classes are compared.
        temperature: Divides the similarities.

    Raises:
        ConfigError: The temperature is not above 0.
    """

    def __init__(self, dim: int, num_classes: int, final_dim: int = 256, temperature: float = 0.1) -> None:
        super().__init__(dim, num_classes)
        if temperature <= 0:
            raise ConfigError(f"objective.head.temperature={temperature} is not above 0", "0.1 is HuBERT's")
        self.temperature = temperature
        self.project = nn.Linear(dim, final_dim)
        self.classes_VF = nn.Parameter(torch.empty(num_classes, final_dim).uniform_())

    @override
    def forward(self, x_PD: Float[Tensor, "P D"]) -> Float[Tensor, "P V"]:
        projected: Tensor = self.project(x_PD)
        with torch.autocast(x_PD.device.type, enabled=False):
            # by the temperature before the product: there are fewer numbers in frames than in logits
            frames = functional.normalize(projected.float(), dim=-1) / self.temperature
            classes = functional.normalize(self.classes_VF.float(), dim=-1)
            return frames @ classes.t()
