"""Recurrent layers in both directions of time; each row's second direction starts at the row's own end."""

from typing import Final, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.batch_norm import FrameBatchNorm
from ossicle.layer.feed_forward import init_linear
from ossicle.ops.gated_recurrence import WEIGHTS, gated_recurrence
from ossicle.ops.recurrence import light_gru, reverse_frames

DIRECTIONS: Final = 2


def check_units(dim: int, units: int | None) -> int:
    """Units of one direction: those named, or half the model's width.

    Raises:
        ConfigError: If there would be none.
    """
    chosen = dim // 2 if units is None else units
    if chosen < 1:
        raise ConfigError(f"mixer.units={units} leaves no unit to a direction of width {dim}", "set mixer.units >= 1")
    return chosen


@final
class LightRecurrence(nn.Module):
    """Light gated recurrent units in both directions, and a linear map of both to the model width.

    Input maps and norms of all frames and both directions are one product each; the recurrence is one operation
    (:func:`ossicle.ops.recurrence.light_gru`). Recurrent weights begin orthogonal, gate by gate.

    Args:
        dim: Model width (D).
        units: Units of one direction.
        momentum: Share of a batch in the running moments of the inputs' batch norm.
        epsilon: Added to the variance of a layer norm over the recurrent products; None for no norm.
    """

    decays = True

    def __init__(self, dim: int, units: int, *, momentum: float, epsilon: float | None) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.input = nn.Linear(dim, DIRECTIONS * 2 * units, bias=False)
        nn.init.xavier_uniform_(self.input.weight)
        self.norm = FrameBatchNorm(DIRECTIONS * 2 * units, momentum)
        self.recurrent = nn.Parameter(torch.empty(DIRECTIONS, 2 * units, units))
        for weights_UU in self.recurrent.data.flatten(0, 1).split(units):
            nn.init.orthogonal_(weights_UU)
        self.out = init_linear(nn.Linear(DIRECTIONS * units, dim))

    @override
    def forward(
        self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Mix frames; the real ones must come first in each row."""
        gates = self.norm(self.input(x_BTD), valid_BT)
        if valid_BT is not None:
            gates = gates.masked_fill(~valid_BT[..., None], 0)
        there, back = gates.chunk(DIRECTIONS, -1)
        states = light_gru(torch.stack([there, reverse_frames(back, valid_BT)]), self.recurrent, self.epsilon)
        return self.out(torch.cat([states[0], reverse_frames(states[1], valid_BT)], -1).to(x_BTD.dtype))


@final
class GatedRecurrence(nn.Module):
    """torch's GRU or LSTM in both directions, and a linear map of both to the model width.

    Rows without padding go through both directions in one call (cuDNN's on a GPU). Padded rows go through each by
    itself, the second reversed within its length, so that no lengths are read on the host. Weights are named as in
    ``nn.GRU`` and ``nn.LSTM``; recurrent ones begin orthogonal, gate by gate.

    Args:
        kind: ``GRU`` or ``LSTM``.
        dim: Model width (D).
        units: Units of one direction.
    """

    def __init__(self, kind: str, dim: int, units: int) -> None:
        super().__init__()
        # Their common base: it keeps weights as cuDNN likes them, and torch.compile looks into it, unlike the two.
        self.rnn = nn.RNNBase(kind, dim, units, batch_first=True, bidirectional=True)
        for key, weights_WU in self.rnn.named_parameters():
            if key.startswith("weight_hh"):
                for weights_UU in weights_WU.data.split(units):
                    nn.init.orthogonal_(weights_UU)
        self.out = init_linear(nn.Linear(DIRECTIONS * units, dim))

    @override
    def forward(
        self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Mix frames; the real ones must come first in each row."""
        kind, weights = self.rnn.mode, list(self.rnn.parameters())
        if valid_BT is None:
            return self.out(gated_recurrence(kind, x_BTD, weights).to(x_BTD.dtype))
        x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
        there_BTU = gated_recurrence(kind, x_BTD, weights[:WEIGHTS])
        back_BTU = gated_recurrence(kind, reverse_frames(x_BTD, valid_BT), weights[WEIGHTS:])
        return self.out(torch.cat([there_BTU, reverse_frames(back_BTU, valid_BT)], -1).to(x_BTD.dtype))
