"""Product quantisation by the Gumbel softmax (arXiv 1910.05453, section 3.1; arXiv 2006.11477, section 2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.seeds import generator
from ossicle.core.shapes import Float
from ossicle.ops.codes import count_groups, one_hot
from ossicle.target.base import Quantised, QuantisedTarget


class GumbelQuantiser(QuantisedTarget):
    """Chooses one code of each group by a hard Gumbel softmax and joins their vectors.

    In evaluation the most likely code is chosen, without noise, and the probabilities are those hard choices. All of
    it is float32 under autocast too.

    Args:
        clock: The clock of the model's frames.
        feature_dim: Channels of the frames that are quantised (C).
        num_groups: Codebooks (G).
        num_codes: Codes of each codebook (V).
        dim: Width of the joined vectors; a multiple of ``num_groups``.
        temperature: Temperature of the softmax at step 0.
        temperature_decay: Factor of the temperature a step.
        temperature_floor: Least temperature.

    Raises:
        ConfigError: ``dim`` does not divide into the groups, there is nothing to choose, or no temperature.
    """

    def __init__(
        self,
        clock: FrameClock,
        feature_dim: int,
        *,
        num_groups: int = 2,
        num_codes: int = 320,
        dim: int = 256,
        temperature: float = 2.0,
        temperature_decay: float = 0.999995,
        temperature_floor: float = 0.5,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_codes < 2:
            raise ConfigError(
                f"target.num_groups={num_groups} of target.num_codes={num_codes} leave nothing to choose",
                "one group at least, of two codes at least",
            )
        if temperature <= 0 or temperature_decay <= 0 or temperature_floor <= 0:
            raise ConfigError(
                f"target.temperature={temperature}, temperature_decay={temperature_decay},"
                f" temperature_floor={temperature_floor}",
                "all of them are above 0",
            )
        if dim % num_groups:
            raise ConfigError(
                f"target.dim = {dim} does not divide into target.num_groups = {num_groups}",
                f"take {dim // num_groups * num_groups or num_groups}",
            )
        self.clock = clock
        self.feature_dim = feature_dim
        self.dim = dim
        self.num_groups = num_groups
        self.num_codes = num_codes
        self.temperature = temperature
        self.temperature_decay = temperature_decay
        self.temperature_floor = temperature_floor
        self.logits = nn.Linear(feature_dim, num_groups * num_codes)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.codebook_GVD = nn.Parameter(torch.empty(num_groups, num_codes, dim // num_groups).uniform_())

    def temperature_at(self, step: int) -> float:
        """Temperature after ``step`` optimiser steps."""
        return max(self.temperature * self.temperature_decay**step, self.temperature_floor)

    def _noise(self, like: Tensor, seed: int, position: int) -> Tensor:
        source = generator(seed, position, 0, "gumbel", like.device)
        exponential = torch.empty_like(like).exponential_(generator=source)
        return -exponential.clamp_min(torch.finfo(like.dtype).tiny).log()

    @override
    def forward(self, features_BMC: Float[Tensor, "B M C"], *, seed: int, position: int, step: int) -> Quantised:
        rows, masked, _ = features_BMC.shape
        shape_PGV = (rows * masked, self.num_groups, self.num_codes)
        with torch.autocast(features_BMC.device.type, enabled=False):
            logits = functional.linear(features_BMC.float(), self.logits.weight, self.logits.bias).reshape(shape_PGV)
            likeliest = logits.argmax(-1)
            counts = count_groups(likeliest, self.num_codes)
            if self.training:
                noisy = (logits + self._noise(logits.detach(), seed, position)) / self.temperature_at(step)
                codes, soft = noisy.argmax(-1), noisy.softmax(-1)
                # added so that the forward value is exactly one-hot: frames with equal codes get equal vectors
                choice = one_hot(codes, soft) + (soft - soft.detach())
                probabilities = logits.softmax(-1).mean(0)
            else:
                codes, choice = likeliest, one_hot(likeliest, logits)
                probabilities = counts / len(logits)
            vectors = torch.einsum("pgv,gvd->pgd", choice, self.codebook_GVD)
        return Quantised(
            vectors_BMD=vectors.reshape(rows, masked, self.dim),
            codes_BMG=codes.reshape(rows, masked, self.num_groups),
            code_probabilities_GV=probabilities,
            code_counts_GV=counts,
        )
