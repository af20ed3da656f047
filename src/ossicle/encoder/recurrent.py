"""CPC's context network: a causal recurrent network (arXiv 1807.03748, section 3.1)."""

from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.batch import EncoderOutput
from ossicle.core.shapes import Bool, Float, Int64
from ossicle.encoder.base import Encoder
from ossicle.encoder.block import Block
from ossicle.encoder.stack import run_blocks
from ossicle.mixer.base import MixerFactory


@final
class RecurrentBlock(Block):
    """One GRU layer, from the past to the future: torch's function, since torch.compile does not trace its module.

    Args:
        dim: Width (D).
    """

    decays = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        bound = dim**-0.5  # as torch.nn.GRU begins
        self.weights = nn.ParameterList(
            nn.init.uniform_(nn.Parameter(torch.empty(shape)), -bound, bound)
            for shape in ((3 * dim, dim), (3 * dim, dim), (3 * dim,), (3 * dim,))
        )

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        start_1BD = x_BTD.new_zeros(1, len(x_BTD), self.dim)
        options = {"dropout": 0.0, "train": self.training, "bidirectional": False, "batch_first": True}
        return torch.gru(x_BTD, start_1BD, list(self.weights), has_biases=True, num_layers=1, **options)[0]


@final
class Recurrent(Encoder):
    """GRU layers. A frame hears itself and the frames before it alone.

    Args:
        mixer: Not asked for anything: this encoder mixes by its recurrence, whatever ``mixer=`` says.
        dim: Width (D).
        num_layers: Layers (L).
    """

    causal = True

    def __init__(self, mixer: MixerFactory, *, dim: int = 256, num_layers: int = 1) -> None:
        super().__init__()
        del mixer
        self.dim = dim
        self.num_layers = num_layers
        self.blocks = nn.ModuleList(RecurrentBlock(dim) for _ in range(num_layers))

    @override
    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        *,
        kept_BM: Int64[Tensor, "B M"] | None = None,
        layers: bool = False,
    ) -> EncoderOutput:
        # what follows a row's end is never heard, so padding needs no mask
        outputs = [x_BTD, *run_blocks(self, self.blocks, x_BTD, valid_BT)]
        return EncoderOutput(outputs[-1], tuple(outputs) if layers else ())
