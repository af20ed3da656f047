"""Changes of the frame rate between groups of blocks: by pooling and repeating, or by convolutions."""

import math
from abc import ABC, abstractmethod
from typing import Protocol, final, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.feed_forward import init_linear
from ossicle.layer.normalisation import UtteranceGroupNorm
from ossicle.ops.pooling import pool_frames, repeat_frames


class Sampling(nn.Module, ABC):
    """Frames at ``up / down`` times their rate; the last ones stand for fewer frames where ``down`` does not divide."""

    @abstractmethod
    def forward(
        self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B U D"], Bool[Tensor, "B U"] | None]:
        """Change the rate.

        Args:
            x_BTD: Frames, shape (B, T, D).
            valid_BT: True where a frame is real, or None where every frame is.

        Returns:
            Frames (B, ceil(up T / down), D), and which of them are real: those whose first frame is.
        """


@runtime_checkable
class SamplingFactory(Protocol):
    """Builds a change of the rate once width and rates are known."""

    def __call__(self, dim: int, up: int, down: int) -> Sampling:
        """A module that makes ``up`` frames of ``down``, of the same width."""
        ...


@final
class PooledSampling(Sampling):
    """Each frame ``up`` times, the mean of every ``down`` of them, a linear map: the hourglass (arXiv 2110.13711).

    Args:
        dim: Width of the frames (D).
        up: How often a frame is repeated.
        down: Frames that become one: at a row's end, those that are there.
    """

    def __init__(self, dim: int, up: int, down: int) -> None:
        super().__init__()
        self.linear = init_linear(nn.Linear(dim, dim))
        self.up, self.down = up, down

    @override
    def forward(
        self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B U D"], Bool[Tensor, "B U"] | None]:
        if self.down == 1:
            return repeated(self.linear(x_BTD), self.up), resampled(valid_BT, self.up, 1)
        x_BTD, valid_BT = repeated(zeroed(x_BTD, valid_BT), self.up), resampled(valid_BT, self.up, 1)
        return self.linear(pool_frames(x_BTD, self.down, valid_BT)), resampled(valid_BT, 1, self.down)


@final
class ConvolutionSampling(Sampling):
    """Two convolutions, one that spreads frames and one that leaves some out: MR-HuBERT's (arXiv 2310.02720).

    As its authors' code has it, with c = sqrt(residual_scale), a convolution being followed by group norm and GELU:

        y = c * (spreading convolution of x + each x ``up`` times)
        z = c * (convolution of y at every ``down``-th frame + every ``down``-th y)
        out = c * (z + every ``down``-th of each x ``up`` times)

    The spreading one is a transposed convolution: with a kernel of 1 a frame stands at the first of its ``up`` places
    and the others hold zeros, with a longer one it reaches later places alone. The group norm has one group, so that
    mean and variance are over all channels of a row's real frames, the places that are cut off after it included.

    Args:
        dim: Width of the frames (D).
        up: Places that a frame is spread over.
        down: Frames of which one is kept.
        kernel: Frames that each convolution sees, odd; 1 in both of the authors' configs.
        residual_scale: The square of what every sum is multiplied by.

    Raises:
        ConfigError: The kernel is even, and no frame would be its centre.
    """

    def __init__(self, dim: int, up: int, down: int, *, kernel: int = 1, residual_scale: float = 0.4) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ConfigError(f"sampling.kernel={kernel} has no centre", "give an odd kernel")
        self.spread = nn.ConvTranspose1d(dim, dim, kernel, up, output_padding=up - 1, bias=False)
        self.spread_norm = UtteranceGroupNorm(dim)
        self.gather = nn.Conv1d(dim, dim, kernel, down, padding=kernel // 2, bias=False)
        self.gather_norm = UtteranceGroupNorm(dim)
        self.up, self.down, self.tail = up, down, kernel - 1
        self.scale = math.sqrt(residual_scale)

    @override
    def forward(
        self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B U D"], Bool[Tensor, "B U"] | None]:
        x_BTD = zeroed(x_BTD, valid_BT)
        same_BTD, valid_BT = repeated(x_BTD, self.up), resampled(valid_BT, self.up, 1)
        # the last frame is spread beyond its places: the norm counts what lies there too
        reached_BT = None if valid_BT is None else functional.pad(valid_BT, (self.tail, 0), value=True)
        spread_BTD = self.spread_norm(spread(x_BTD, self.spread), reached_BT)[:, : same_BTD.shape[1]]
        y_BTD = zeroed((functional.gelu(spread_BTD) + same_BTD) * self.scale, valid_BT)
        valid_BU = resampled(valid_BT, 1, self.down)
        gathered_BUD = functional.gelu(self.gather_norm(gather(y_BTD, self.gather), valid_BU))
        z_BUD = (gathered_BUD + y_BTD[:, :: self.down]) * self.scale
        return (z_BUD + same_BTD[:, :: self.down]) * self.scale, valid_BU


def spread(x_BTD: Float[Tensor, "B T D"], convolution: nn.ConvTranspose1d) -> Float[Tensor, "B U D"]:
    """A transposed convolution over frames; as one product where the kernel is 1."""
    if convolution.kernel_size[0] > 1:
        return convolution(x_BTD.transpose(1, 2)).transpose(1, 2)
    mapped_BTD = functional.linear(x_BTD, convolution.weight.squeeze(2).T)
    return functional.pad(mapped_BTD[:, :, None], (0, 0, 0, convolution.stride[0] - 1)).flatten(1, 2)


def gather(x_BTD: Float[Tensor, "B T D"], convolution: nn.Conv1d) -> Float[Tensor, "B U D"]:
    """A convolution over frames; as one product where the kernel is 1."""
    if convolution.kernel_size[0] > 1:
        return convolution(x_BTD.transpose(1, 2)).transpose(1, 2)
    return functional.linear(x_BTD[:, :: convolution.stride[0]], convolution.weight.squeeze(2))


def zeroed(x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B T D"]:
    """Frames with zeros where they are not real."""
    return x_BTD if valid_BT is None else x_BTD.masked_fill(~valid_BT[..., None], 0)


def repeated(x_BTD: Float[Tensor, "B T D"], times: int) -> Float[Tensor, "B U D"]:
    """Each frame so many times."""
    return repeat_frames(x_BTD, times, times * x_BTD.shape[1])


def resampled(valid_BT: Bool[Tensor, "B T"] | None, up: int, down: int) -> Bool[Tensor, "B U"] | None:
    """Which frames are real at ``up / down`` times the rate."""
    return None if valid_BT is None else repeated(valid_BT[..., None], up)[..., 0][:, ::down]
