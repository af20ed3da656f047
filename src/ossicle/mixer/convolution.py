"""Light, dynamic and depthwise convolutions in place of attention (arXiv 1901.10430)."""

from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.feed_forward import init_linear
from ossicle.layer.multi_head import check_heads
from ossicle.layer.normalisation import at_least_float32
from ossicle.mixer.base import Mixer
from ossicle.ops.dynamic_convolution import dynamic_convolution

KINDS: Final = ("light", "dynamic", "depthwise")


@final
class Convolution(Mixer):
    """A map to twice the width and a gate (GLU), a depthwise convolution centred on each frame, a map (section 3).

    ``light``: one kernel a head, normalised by a softmax over its taps. ``dynamic``: the same with kernels that a
    linear map makes of each frame as the gate leaves it. ``depthwise``: a kernel of its own for every channel, not
    normalised. Beyond a row's real frames stand zeros.

    Args:
        dim: Model width (D).
        kind: ``light``, ``dynamic`` or ``depthwise``.
        kernel: Frames that the convolution sees; odd.
        num_heads: Kernels of ``light`` and ``dynamic``, each serving D / num_heads channels.
        dropout: Share of the kernels' weights that is left out while training.

    Raises:
        ConfigError: The kind is unknown, the kernel has no centre, or the heads do not divide the width.
    """

    def __init__(
        self, dim: int, kind: str = "light", kernel: int = 31, num_heads: int = 8, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"mixer.kind={kind} is no convolution", f"choose from: {', '.join(KINDS)}")
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"mixer.kernel={kernel} has no centre", "give an odd one, such as 31")
        self.kind = kind
        self.kernel = kernel
        self.num_heads = check_heads(dim, num_heads)
        self.dropout = dropout
        self.gate = init_linear(nn.Linear(dim, 2 * dim))
        self.taps: nn.Linear | None = None
        self.weight: nn.Parameter | None = None
        if kind == "dynamic":
            self.taps = init_linear(nn.Linear(dim, num_heads * kernel, bias=False))
        else:
            kernels = num_heads if kind == "light" else dim
            self.weight = nn.Parameter(torch.empty(kernels, kernel).uniform_(-1, 1) / kernel**0.5)
        self.out = init_linear(nn.Linear(dim, dim))

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        gated_BTD = functional.glu(self.gate(x_BTD))
        if valid_BT is not None:
            gated_BTD = gated_BTD.masked_fill(~valid_BT[..., None], 0)
        if self.taps is not None:
            weights_BTHK = self._normalised(self.taps(gated_BTD).unflatten(-1, (self.num_heads, self.kernel)))
            return self.out(dynamic_convolution(gated_BTD, weights_BTHK.to(gated_BTD.dtype)))
        assert self.weight is not None
        weights_HK = self._normalised(self.weight)
        dim = gated_BTD.shape[-1]
        weights_DK = weights_HK.repeat_interleave(dim // weights_HK.shape[0], 0).to(gated_BTD.dtype)
        mixed_BDT = functional.conv1d(
            gated_BTD.transpose(1, 2), weights_DK[:, None], padding=self.kernel // 2, groups=dim
        )
        return self.out(mixed_BDT.transpose(1, 2))

    def _normalised(self, weights: Tensor) -> Tensor:
        """Kernels as they are used: their taps sum to one but for ``depthwise``, and some are left out in training."""
        if self.kind != "depthwise":
            weights = at_least_float32(weights).softmax(-1)
        return functional.dropout(weights, self.dropout, self.training)
