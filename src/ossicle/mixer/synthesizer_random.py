"""The factorised random Synthesizer: attention weights that no input changes (arXiv 2005.00743, section 3.4)."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.feed_forward import init_linear
from ossicle.layer.multi_head import check_heads, split_heads
from ossicle.layer.synthetic_keys import attend_places, learned_places
from ossicle.mixer.base import Mixer


@final
class SynthesizerRandom(Mixer):
    """softmax(R1 R2') over places up to a greatest length, learned for each head, then a mean of values; T^2 in time.

    Args:
        dim: Model width (D).
        num_heads: Heads (H), each with weights of its own; must divide the width.
        dropout: Dropout of attention weights while training.
        rank: Columns of both factors, 8 in the paper; at most the width of a head.
        max_frames: Places that weights are learned for (L); longer input is refused.

    Raises:
        ConfigError: If the heads do not divide the width, the rank does not fit, or there is no place.
    """

    def __init__(
        self, dim: int, num_heads: int = 12, dropout: float = 0.1, rank: int = 8, max_frames: int = 2000
    ) -> None:
        super().__init__()
        self.max_frames = max_frames
        self.num_heads = check_heads(dim, num_heads)
        width = dim // num_heads
        if not 1 <= rank <= width:
            raise ConfigError(f"mixer.rank={rank} does not fit heads of width {width}", f"it lies in 1 to {width}")
        self.dropout = dropout
        # Factors are padded with zeros to a head's width where they are used: fused kernels ask for one width.
        self.missing = width - rank
        self.from_places = learned_places(num_heads, max_frames, rank)
        self.to_places = learned_places(num_heads, max_frames, rank)
        nn.init.normal_(self.from_places)
        self.value = init_linear(nn.Linear(dim, dim))
        self.out = init_linear(nn.Linear(dim, dim))

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        rows, frames, _ = x_BTD.shape
        v_BTHK = split_heads(self.value(x_BTD), self.num_heads)
        from_HLK, to_HLK = (
            functional.pad(places[:, :frames].to(v_BTHK.dtype), (0, self.missing))
            for places in (self.from_places, self.to_places)
        )
        dropout = self.dropout if self.training else 0.0
        from_BHLK = from_HLK.expand(rows, -1, -1, -1)
        return self.out(attend_places(from_BHLK, to_HLK, v_BTHK, valid_BT, dropout).flatten(2))
