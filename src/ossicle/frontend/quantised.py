"""A frontend whose frames are codes: vq-wav2vec (arXiv 1910.05453)."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.core.batch import Frames
from ossicle.core.shapes import Float, Int
from ossicle.frontend.base import Frontend
from ossicle.layer.quantiser import QuantiserFactory
from ossicle.ops.codes import count_codes


@final
class Quantised(Frontend):
    """Another frontend's frames, each group of channels replaced by its code's vector.

    Context network and targets both see codes alone (section 3); the quantiser is a part of the model and is exported
    with it.

    Args:
        frontend: Makes the frontend whose frames are quantised.
        quantiser: Builds the quantiser, from ``dim``.
    """

    quantises = True

    def __init__(self, frontend: Callable[[], Frontend], quantiser: QuantiserFactory) -> None:
        super().__init__()
        self.frontend = frontend()
        self.clock = self.frontend.clock
        self.dim = self.frontend.dim
        self.quantiser = quantiser(dim=self.dim)

    @override
    def anneal(self, step: int) -> None:
        self.quantiser.anneal(step)

    @override
    def forward(self, waveform_BS: Float[Tensor, "B S"], lengths_B: Int[Tensor, " B"] | None = None) -> Frames:
        frames = self.frontend(waveform_BS, lengths_B)
        coded = self.quantiser(frames.features_BTC)
        counts = torch.stack([count_codes(codes, self.quantiser.num_codes) for codes in coded.codes_BTG.unbind(-1)])
        return Frames(coded.vectors_BTC, frames.valid_BT, penalty=coded.penalty, code_counts_GV=counts)
