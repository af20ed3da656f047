"""Means of learned polynomials in place of attention: PoM (arXiv 2411.12663)."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.feed_forward import init_linear
from ossicle.mixer.base import Mixer
from ossicle.ops.summary import mean_summary


@final
class Polynomial(Mixer):
    """All frames meet in one state, the mean of polynomials of theirs, from which each takes its share: O(T).

    With E = ``expand`` x D and W_1 ... W_k of shape (E, D), k = ``degree``: p_1(x) = gelu(W_1 x) and
    p_m(x) = p_{m-1}(x) * gelu(W_m x), channel by channel; the state is the mean s over a row's real frames of
    [p_1(x_t), ..., p_k(x_t)], of shape k E; a frame's share of it is y_t = W_o (sigmoid(W_s x_t) * s), with W_s of
    shape (k E, D) and W_o of shape (D, k E). All maps have biases, as in the authors' first code; the masks by which
    that takes in some frames alone for each frame, for causal models, are not here.

    Args:
        dim: Model width (D).
        degree: The highest degree (k).
        expand: Width of each degree's polynomials as a multiple of the model's.

    Raises:
        ConfigError: There is no polynomial.
    """

    reads_order = False

    def __init__(self, dim: int, degree: int = 2, expand: int = 2) -> None:
        super().__init__()
        if degree < 1 or expand < 1:
            raise ConfigError(f"mixer.degree={degree} with mixer.expand={expand} is no polynomial", "give 1 or more")
        self.degree = degree
        width = degree * expand * dim
        self.factors = init_linear(nn.Linear(dim, width))
        self.select = init_linear(nn.Linear(dim, width))
        self.out = init_linear(nn.Linear(width, dim))

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        factors = functional.gelu(self.factors(x_BTD)).chunk(self.degree, -1)
        powers = [factors[0]]
        for factor_BTE in factors[1:]:
            powers.append(powers[-1] * factor_BTE)
        state_B1E = mean_summary(torch.cat(powers, -1), valid_BT).to(x_BTD.dtype)
        return self.out(self.select(x_BTD).sigmoid() * state_B1E)
