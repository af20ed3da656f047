"""Quantisers that stand inside a model: vq-wav2vec's two (arXiv 1910.05453, section 3)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float, Int64
from ossicle.ops.codes import one_hot
from ossicle.ops.losses import diversity_loss
from ossicle.ops.precision import without_autocast

CODE_STD: Final = 0.01
"""What k-means codes begin with, as in the authors' code."""


@dataclass(frozen=True, slots=True)
class Coded:
    """What a quantiser makes of frames.

    Args:
        vectors_BTC: The codes' vectors, with gradient into frames and codebooks.
        codes_BTG: The code of each frame in each group, int64.
        penalty: Scalar with gradient: what the quantiser adds to a loss a frame.
    """

    vectors_BTC: Tensor
    codes_BTG: Tensor
    penalty: Tensor


class Quantiser(nn.Module, ABC):
    """Puts codes in the place of frames, of the same width.

    Args:
        dim: Width of frames (C).
        num_groups: Groups of channels (G).
        num_codes: Codes of each (V).
        combine_groups: Whether all groups take their codes from one codebook, and not each from its own.

    Attributes:
        codebook_GVD: The codes' vectors, of one group where groups are combined.

    Raises:
        ConfigError: The groups do not divide the width.
    """

    codebook_GVD: nn.Parameter

    def __init__(self, dim: int, num_groups: int, num_codes: int, *, combine_groups: bool) -> None:
        super().__init__()
        if num_groups < 1 or dim % num_groups:
            raise ConfigError(
                f"quantiser.num_groups={num_groups} does not divide frames of width {dim}", "choose a divisor"
            )
        self.dim = dim
        self.num_groups = num_groups
        self.num_codes = num_codes
        self.codebook_shape = (1 if combine_groups else num_groups, num_codes, dim // num_groups)

    @property
    def vectors_GVD(self) -> Float[Tensor, "G V D"]:
        """The codes' vectors of every group."""
        return self.codebook_GVD.expand(self.num_groups, -1, -1)

    def anneal(self, step: int) -> None:
        """Follow the number of optimiser steps taken; a host integer."""
        del step

    @abstractmethod
    def forward(self, x_BTC: Float[Tensor, "B T C"]) -> Coded:
        """Quantise frames; float32 under autocast too."""


@runtime_checkable
class QuantiserFactory(Protocol):
    """Builds a quantiser once the frames' width is known."""

    def __call__(self, *, dim: int) -> Quantiser:
        """A quantiser for frames of this width."""
        ...


@final
class GumbelCodes(Quantiser):
    """A hard Gumbel softmax over logits of a network of two layers (section 3.1).

    In evaluation the likeliest code is taken. The noise comes from the device's default generator, as dropout's does,
    which the system seeds for every batch.

    Args:
        dim: Width of frames (C).
        num_groups: Groups of channels (G).
        num_codes: Codes of each (V).
        temperature: Temperature of the softmax at step 0.
        temperature_decay: Factor of the temperature a step.
        temperature_floor: Least temperature.
        combine_groups: Whether all groups take their codes from one codebook.
        diversity_weight: Weight of the share of codes left unused in a batch, which the paper has not, and wav2vec 2.0
            has for the codes that fall out of use without it (arXiv 2006.11477, equation 4).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_groups: int = 2,
        num_codes: int = 320,
        temperature: float = 2.0,
        temperature_decay: float = 0.999995,
        temperature_floor: float = 0.5,
        combine_groups: bool = False,
        diversity_weight: float = 0.0,
    ) -> None:
        super().__init__(dim, num_groups, num_codes, combine_groups=combine_groups)
        self.diversity_weight = diversity_weight
        self.temperature = temperature
        self.temperature_decay = temperature_decay
        self.temperature_floor = temperature_floor
        self.temperature_now = temperature
        self.enter = nn.Linear(dim, dim)
        self.logits = nn.Linear(dim, num_groups * num_codes)
        # as in wav2vec 2.0's quantiser: by torch's default the noise, and not the frame, chooses the codes at first
        nn.init.normal_(self.logits.weight)
        self.codebook_GVD = nn.Parameter(torch.empty(self.codebook_shape).uniform_())

    @override
    def anneal(self, step: int) -> None:
        self.temperature_now = max(self.temperature * self.temperature_decay**step, self.temperature_floor)

    @override
    def forward(self, x_BTC: Float[Tensor, "B T C"]) -> Coded:
        with without_autocast(x_BTC):
            logits = self.logits(functional.relu(self.enter(x_BTC.float())))
            logits_BTGV = logits.unflatten(-1, (self.num_groups, self.num_codes))
            if self.training:
                noise = (
                    -torch.empty_like(logits_BTGV).exponential_().clamp_min(torch.finfo(logits_BTGV.dtype).tiny).log()
                )
                noisy = (logits_BTGV + noise) / self.temperature_now
                codes, soft = noisy.argmax(-1), noisy.softmax(-1)
                choice = one_hot(codes, soft) + (soft - soft.detach())  # exactly one-hot in value
            else:
                codes = logits_BTGV.argmax(-1)
                choice = one_hot(codes, logits_BTGV)
            vectors = torch.einsum("btgv,gvd->btgd", choice, self.vectors_GVD)
            penalty = vectors.new_zeros(())
            if self.diversity_weight:
                penalty = self.diversity_weight * diversity_loss(logits_BTGV.softmax(-1).mean((0, 1)))
        return Coded(vectors.flatten(2), codes, penalty)


@final
class KMeansCodes(Quantiser):
    """The nearest code of each group, straight through, with the two terms that draw codes and frames together.

    penalty = ||sg(z) - e||^2 + commitment * ||z - sg(e)||^2 (equation 3), averaged over channels and frames as in the
    authors' code: summed over channels it outweighs what is foreseen, and draws all frames to one code.

    Args:
        dim: Width of frames (C).
        num_groups: Groups of channels (G).
        num_codes: Codes of each (V).
        combine_groups: Whether all groups take their codes from one codebook.
        commitment: Weight of the frames' own term (gamma).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_groups: int = 2,
        num_codes: int = 320,
        combine_groups: bool = False,
        commitment: float = 0.25,
    ) -> None:
        super().__init__(dim, num_groups, num_codes, combine_groups=combine_groups)
        self.commitment = commitment
        self.project = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)  # frames cannot come to their codes by shrinking
        # near zero, codes differ for a frame by their direction alone: none is nearest to all for being short
        self.codebook_GVD = nn.Parameter(CODE_STD * torch.randn(self.codebook_shape))

    @override
    def forward(self, x_BTC: Float[Tensor, "B T C"]) -> Coded:
        with without_autocast(x_BTC):
            z_BTGD = self.norm(self.project(x_BTC.float())).unflatten(-1, (self.num_groups, -1))
            codes_BTG = nearest(z_BTGD.detach(), self.vectors_GVD.detach())
            groups_G = torch.arange(self.num_groups, device=codes_BTG.device)
            e_BTGD = self.vectors_GVD[groups_G, codes_BTG]
            pull = (z_BTGD.detach() - e_BTGD).square().mean()
            commit = (z_BTGD - e_BTGD.detach()).square().mean()
            through_BTGD = e_BTGD.detach() + (z_BTGD - z_BTGD.detach())  # exactly the code in value
        return Coded(through_BTGD.flatten(2), codes_BTG, pull + self.commitment * commit)


def nearest(x_BTGD: Float[Tensor, "B T G D"], codebook_GVD: Float[Tensor, "G V D"]) -> Int64[Tensor, "B T G"]:
    """The code at the least distance in each group, shape (B, T, G)."""
    products = torch.einsum("btgd,gvd->btgv", x_BTGD, codebook_GVD)
    return (codebook_GVD.square().sum(-1) - 2 * products).argmin(-1)
