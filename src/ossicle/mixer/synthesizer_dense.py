"""The dense Synthesizer: attention weights made from each frame alone (arXiv 2005.00743, sections 3.1 and 3.3)."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.feed_forward import init_linear
from ossicle.layer.multi_head import check_heads, split_heads
from ossicle.layer.synthetic_keys import attend_places, attend_scores, check_places, learned_places
from ossicle.mixer.base import Mixer


@final
class SynthesizerDense(Mixer):
    """softmax(W2 relu(W1 x + b)) over places up to a greatest length, then a mean of values; quadratic in T.

    The paper's second bias, one number for each place, is left out: no fused kernel takes its gradient.

    Factorised, W2 makes a and b numbers of a frame in place of a x b = L (section 3.3). The score of place j is the
    product of the first kind's number j mod a and the second's j // a: the first are repeated as a whole and the second
    one by one, so that no two places are given the same pair. It spares weights alone: scores are written out, T x T of
    each head, as no fused kernel makes them.

    Args:
        dim: Model width (D).
        num_heads: Heads (H), each with weights of its own; must divide the width.
        dropout: Dropout of attention weights while training.
        max_frames: Places that weights are learned for (L); longer input is refused.
        factor: Numbers of the first factor (a), which divides L; None does not factorise.

    Raises:
        ConfigError: If the heads do not divide the width, there is no place, or the factor does not divide the places.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 12,
        dropout: float = 0.1,
        max_frames: int = 2000,
        factor: int | None = None,
    ) -> None:
        super().__init__()
        self.max_frames = max_frames
        self.num_heads = check_heads(dim, num_heads)
        if factor is not None and (factor < 1 or max_frames % factor):
            raise ConfigError(
                f"mixer.factor={factor} does not divide mixer.max_frames={max_frames}",
                "give a divisor; the one nearest the root has the fewest weights, such as 40 of 2000",
            )
        self.dropout = dropout
        self.hidden = init_linear(nn.Linear(dim, dim))
        width = dim // num_heads
        self.places = learned_places(num_heads, max_frames if factor is None else factor, width)
        self.blocks = None if factor is None else learned_places(num_heads, max_frames // factor, width)
        self.value = init_linear(nn.Linear(dim, dim))
        self.out = init_linear(nn.Linear(dim, dim))

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        hidden_BHTK = split_heads(functional.relu(self.hidden(x_BTD)), self.num_heads).transpose(1, 2)
        v_BTHK = split_heads(self.value(x_BTD), self.num_heads)
        dropout = self.dropout if self.training else 0.0
        if self.blocks is None:
            mixed_BTHK = attend_places(hidden_BHTK, self.places, v_BTHK, valid_BT, dropout)
        else:
            scores_BHTS = self._products(hidden_BHTK, self.blocks)
            mixed_BTHK = attend_scores(scores_BHTS, v_BTHK, valid_BT, dropout)
        return self.out(mixed_BTHK.flatten(2))

    def _products(self, hidden_BHTK: Tensor, blocks_HNK: Tensor) -> Tensor:
        """What both factors make of each frame for each place, (B, H, T, T)."""
        frames, factor = hidden_BHTK.shape[2], self.places.shape[1]
        check_places(frames, factor * blocks_HNK.shape[1])
        within_BHTA = hidden_BHTK @ self.places.to(hidden_BHTK.dtype).mT
        between_BHTN = hidden_BHTK @ blocks_HNK[:, : -(-frames // factor)].to(hidden_BHTK.dtype).mT
        return (between_BHTN[..., None] * within_BHTA[..., None, :]).flatten(-2)[..., :frames]
