"""Projections into the space in which a contrastive loss compares, beside torch.nn.Linear."""

from typing import Protocol, final, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.shapes import Float


@runtime_checkable
class ProjectionFactory(Protocol):
    """Builds a projection once the widths are known: torch.nn.Linear is one."""

    def __call__(self, in_features: int, out_features: int) -> nn.Module:
        """A map of the last axis from one width to another."""
        ...


@final
class MLPProjection(nn.Module):
    """Linear map, batch norm, ReLU, linear map: SEW's predictor heads (arXiv 2109.06870, section 4.4).

    The norm is over all frames that a rank has at once, as published: a loss behind it is not the sum of its halves.

    Args:
        in_features: Width that comes in.
        out_features: Width that goes out.
        hidden_dim: Width between.
    """

    def __init__(self, in_features: int, out_features: int, hidden_dim: int = 4096) -> None:
        super().__init__()
        self.enter = nn.Linear(in_features, hidden_dim, bias=False)  # the norm would take a bias away
        self.norm = nn.BatchNorm1d(hidden_dim)
        self.leave = nn.Linear(hidden_dim, out_features)
        for linear in (self.enter, self.leave):
            nn.init.xavier_normal_(linear.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    @override
    def forward(self, x_BMD: Float[Tensor, "B M D"]) -> Float[Tensor, "B M F"]:
        """Project frames."""
        hidden_PH = self.norm(self.enter(x_BMD).flatten(0, 1))
        return self.leave(functional.relu(hidden_PH)).unflatten(0, x_BMD.shape[:2])
