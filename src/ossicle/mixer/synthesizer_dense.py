"""The dense Synthesizer: attention weights made from each frame alone (arXiv 2005.00743, section 3.1)."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.shapes import Bool, Float
from ossicle.layer.feed_forward import init_linear
from ossicle.layer.multi_head import check_heads, split_heads
from ossicle.layer.synthetic_keys import attend_places, learned_places
from ossicle.mixer.base import Mixer


@final
class SynthesizerDense(Mixer):
    """softmax(W2 relu(W1 x + b)) over places up to a greatest length, then a mean of values; quadratic in T.

    The paper's second bias, one number for each place, is left out: no fused kernel takes its gradient.

    Args:
        dim: Model width (D).
        num_heads: Heads (H), each with weights of its own; must divide the width.
        dropout: Dropout of attention weights while training.
        max_frames: Places that weights are learned for (L); longer input is refused.

    Raises:
        ConfigError: If the heads do not divide the width, or there is no place.
    """

    def __init__(self, dim: int, num_heads: int = 12, dropout: float = 0.1, max_frames: int = 2000) -> None:
        super().__init__()
        self.max_frames = max_frames
        self.num_heads = check_heads(dim, num_heads)
        self.dropout = dropout
        self.hidden = init_linear(nn.Linear(dim, dim))
        self.places = learned_places(num_heads, max_frames, dim // num_heads)
        self.value = init_linear(nn.Linear(dim, dim))
        self.out = init_linear(nn.Linear(dim, dim))

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        hidden_BHTK = split_heads(functional.relu(self.hidden(x_BTD)), self.num_heads).transpose(1, 2)
        v_BTHK = split_heads(self.value(x_BTD), self.num_heads)
        dropout = self.dropout if self.training else 0.0
        return self.out(attend_places(hidden_BHTK, self.places, v_BTHK, valid_BT, dropout).flatten(2))
