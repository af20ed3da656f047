"""Norms of frames that know which of them are real."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.shapes import Bool, Float


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it comes so."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def moments(
    x_BCT: Float[Tensor, "B C T"], valid_BT: Bool[Tensor, "B T"]
) -> tuple[Float[Tensor, "B C 1"], Float[Tensor, "B C 1"]]:
    """Mean and variance (of the population) over a row's real frames, in float32 at least."""
    x_BCT = at_least_float32(x_BCT)
    weight_B1T = valid_BT[:, None].to(x_BCT.dtype)
    count_B11 = weight_B1T.sum(-1, keepdim=True).clamp(min=1)
    mean_BC1 = (x_BCT * weight_B1T).sum(-1, keepdim=True) / count_B11
    variance_BC1 = ((x_BCT - mean_BC1).square() * weight_B1T).sum(-1, keepdim=True) / count_B11
    return mean_BC1, variance_BC1


@final
class UtteranceNorm(nn.Module):
    """Mean 0 and variance 1 over an utterance's real frames for each channel of (B, T, C); no parameters.

    Args:
        epsilon: Added to the variance: bands that never change stay at zero.
    """

    def __init__(self, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon

    @override
    def forward(
        self, features_BTC: Float[Tensor, "B T C"], valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T C"]:
        """Normalise frames."""
        x_BCT = features_BTC.transpose(1, 2)
        if features_BTC.shape[1] == 1:
            return torch.zeros_like(features_BTC)  # torch refuses the one frame, which is its own mean
        if valid_BT is None:
            return functional.instance_norm(x_BCT, eps=self.epsilon).transpose(1, 2)
        mean_BC1, variance_BC1 = moments(x_BCT, valid_BT)
        return ((x_BCT - mean_BC1) * torch.rsqrt(variance_BC1 + self.epsilon)).transpose(1, 2)


@final
class GlobalNorm(nn.Module):
    """Channels of (B, T, C) less the mean of all data, over its deviation (arXiv 2211.09944, 2309.13860 in their code).

    Both are buffers: measured once, saved with the model, never trained. Until then frames stay as they are.

    Args:
        dim: Channels (C).
        epsilon: Least deviation: channels that never change stay at zero.
    """

    def __init__(self, dim: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.mean_C: Tensor
        self.deviation_C: Tensor
        self.register_buffer("mean_C", torch.zeros(dim))
        self.register_buffer("deviation_C", torch.ones(dim))

    @torch.no_grad()
    def fit(self, mean_C: Float[Tensor, " C"], deviation_C: Float[Tensor, " C"]) -> None:
        """Take the mean and deviation of all data."""
        self.mean_C.copy_(mean_C)
        self.deviation_C.copy_(deviation_C.clamp(min=self.epsilon))

    @override
    def forward(
        self, features_BTC: Float[Tensor, "B T C"], valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T C"]:
        """Normalise frames, each by itself."""
        del valid_BT
        return (features_BTC - self.mean_C) / self.deviation_C


@final
class RunningNorm(nn.Module):
    """Channels of (B, T, C) less the mean of what was heard so far, over its deviation; no parameters.

    Mean and variance of all data count as so many frames before the first, as in Kaldi's online cepstral normalisation.
    So a frame knows nothing of those after it, and a voice is normalised almost as well as by its whole utterance.

    Args:
        dim: Channels (C).
        prior_frames: Frames that all data count for: Kaldi takes 200 of 10 ms for speakers that it does not know.
        epsilon: Added to the variance: channels that never change stay at zero.
    """

    def __init__(self, dim: int, prior_frames: int = 100, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.prior = GlobalNorm(dim)
        self.prior_frames = prior_frames
        self.epsilon = epsilon

    @override
    def forward(
        self, features_BTC: Float[Tensor, "B T C"], valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T C"]:
        """Normalise frames, each by itself and those before it; of padding at a row's end nothing is heard."""
        del valid_BT
        x_BTC = self.prior(at_least_float32(features_BTC))
        count_T1 = self.prior_frames + torch.arange(1, x_BTC.shape[1] + 1, device=x_BTC.device)[:, None]
        mean_BTC = x_BTC.cumsum(1) / count_T1
        square_BTC = (x_BTC.square().cumsum(1) + self.prior_frames) / count_T1
        return (x_BTC - mean_BTC) * torch.rsqrt(square_BTC - mean_BTC.square() + self.epsilon)


@final
class UtteranceGroupNorm(nn.GroupNorm):
    """Group norm (arXiv 1803.08494) with one group: mean and variance over all channels of a row's real frames.

    Mean, variance and what is done with them are float32 at least; what comes out has the type of what comes in.

    Args:
        channels: Channels of a frame (C), each with a gain and a bias.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    @override
    def forward(
        self, input: Float[Tensor, "B T C"], valid_BT: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T C"]:
        """Normalise frames.

        Args:
            input: Frames, finite where they are not real too, shape (B, T, C).
            valid_BT: True where a frame is real, or None where every frame is.
        """
        x_BTC = at_least_float32(input)
        if valid_BT is None:
            variance_B11, mean_B11 = torch.var_mean(x_BTC, (1, 2), correction=0, keepdim=True)
        else:
            mean_BC1, variance_BC1 = moments(x_BTC.transpose(1, 2), valid_BT)
            mean_B11 = mean_BC1.mean(1, keepdim=True)
            variance_B11 = (variance_BC1 + (mean_BC1 - mean_B11).square()).mean(1, keepdim=True)
        gain_B1C = torch.rsqrt(variance_B11 + self.eps) * self.weight
        return torch.addcmul(self.bias - mean_B11 * gain_B1C, x_BTC, gain_B1C).to(input.dtype)
