"""A frontend whose frames are codes: vq-wav2vec (arXiv 1910.05453)."""

from collections.abc import Callable
from typing import final

from torch import Tensor
from typing_extensions import override

from ossicle.core.batch import Frames
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float, Int
from ossicle.frontend.base import Frontend
from ossicle.layer.quantiser import QuantiserFactory
from ossicle.ops.codes import count_groups


@final
class Quantised(Frontend):
    """Another frontend's frames, each group of channels replaced by its code's vector.

    Context network and targets both see codes alone (section 3); the quantiser is a part of the model and is exported
    with it.

    Args:
        frontend: Makes the frontend whose frames are quantised.
        quantiser: Builds the quantiser, from ``dim``.

    Raises:
        ConfigError: The frontend inside quantises too: its penalty would be lost.
    """

    quantises = True

    def __init__(self, frontend: Callable[[], Frontend], quantiser: QuantiserFactory) -> None:
        super().__init__()
        self.frontend = frontend()
        if self.frontend.quantises:
            raise ConfigError(
                "the frontend whose frames are quantised quantises them itself",
                "choose one that does not: frontend@frontend.frontend=wave_cpc",
            )
        self.clock = self.frontend.clock
        self.dim = self.frontend.dim
        self.causal = self.frontend.causal
        self.quantiser = quantiser(dim=self.dim)

    @override
    def anneal(self, step: int) -> None:
        self.quantiser.anneal(step)

    @override
    def forward(self, waveform_BS: Float[Tensor, "B S"], lengths_B: Int[Tensor, " B"] | None = None) -> Frames:
        frames = self.frontend(waveform_BS, lengths_B)
        coded = self.quantiser(frames.features_BTC)
        counts = count_groups(coded.codes_BTG.flatten(0, 1), self.quantiser.num_codes)
        return Frames(coded.vectors_BTC, frames.valid_BT, penalty=coded.penalty, code_counts_GV=counts)
