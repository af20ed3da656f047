"""Log-mel frames, stacked to a lower rate (arXiv 2202.01855 and 2211.09944 feed a Transformer with such frames)."""

from typing import Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.core.batch import Frames
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float, Int
from ossicle.frontend.base import Frontend
from ossicle.layer.normalisation import GlobalNorm, RunningNorm, UtteranceNorm
from ossicle.ops.framing import frame_mask, require_one_frame
from ossicle.ops.spectral import log_mel, spectral_clock

Norm = Literal["utterance", "global", "running"]
_NORMS = {"utterance": lambda _: UtteranceNorm(), "global": GlobalNorm, "running": RunningNorm}


@final
class LogMel(Frontend):
    """Log-mel energies, each band normalised over the utterance or by all data, neighbouring frames side by side.

    It has no parameters. With a norm that knows all data it has two buffers, which :mod:`ossicle.launch.statistics`
    measures before a run's first step. Frames that do not fill a stack at the end are left out.

    Args:
        num_mels: Mel bands.
        window_ms: Length of a frame.
        hop_ms: Distance between frames before stacking.
        stack: Neighbouring frames that make one: 2 gives 50 frames a second from a hop of 10 ms.
        rate_hz: Samples a second of the waveform.
        low_hz: Lower edge of the first band.
        high_hz: Upper edge of the last band; 0 or less counts from half the rate.
        band_shift: In training, each utterance's bands move up or down together by at most so many, which stands for a
            shorter or longer vocal tract (Jaitly and Hinton 2013, "Vocal tract length perturbation"); 0 for none.
        norm: By what each band is normalised: mean and deviation of the ``utterance``, or ``global``: of all data, or
            ``running``: of what was heard so far, all data counting as a second before it.

    Raises:
        ConfigError: If window or hop is no whole number of samples, stack is less than one, band_shift is negative, or
            there is no such norm.
    """

    def __init__(
        self,
        *,
        num_mels: int = 80,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        stack: int = 2,
        rate_hz: int = 16_000,
        low_hz: float = 20.0,
        high_hz: float = 0.0,
        band_shift: int = 0,
        norm: Norm = "utterance",
    ) -> None:
        super().__init__()
        if stack < 1:
            raise ConfigError(f"frontend.stack={stack} makes no frames", "frontend.stack is 1 or more")
        if not 0 <= band_shift < num_mels:
            raise ConfigError(f"frontend.band_shift={band_shift} is out of range", f"it lies in [0, {num_mels})")
        if norm not in _NORMS:
            raise ConfigError(f"frontend.norm={norm} is unknown", f"choose from {', '.join(_NORMS)}")
        self.num_mels = num_mels
        self.window_ms = window_ms
        self.hop_ms = hop_ms
        self.stack = stack
        self.low_hz = low_hz
        self.high_hz = high_hz
        self.band_shift = band_shift
        self.mel_clock = spectral_clock(window_ms=window_ms, hop_ms=hop_ms, rate_hz=rate_hz)
        self.clock = self.mel_clock.then(stack, stack)
        self.dim = num_mels * stack
        self.norm = _NORMS[norm](num_mels)
        self.causal = norm != "utterance"

    def mels(self, waveform_BS: Float[Tensor, "B S"]) -> Float[Tensor, "B T C"]:
        """Log-mel energies on ``mel_clock``, as they are before they are normalised."""
        return log_mel(
            waveform_BS,
            num_mels=self.num_mels,
            window_ms=self.window_ms,
            hop_ms=self.hop_ms,
            rate_hz=self.clock.rate_hz,
            low_hz=self.low_hz,
            high_hz=self.high_hz,
        )

    @override
    def forward(self, waveform_BS: Float[Tensor, "B S"], lengths_B: Int[Tensor, " B"] | None = None) -> Frames:
        require_one_frame(waveform_BS.shape[-1], self.clock)
        mels_BTC = self.mels(waveform_BS)
        if self.training and self.band_shift:
            mels_BTC = shift_bands(mels_BTC, self.band_shift)
        num_frames = self.clock.num_frames(waveform_BS.shape[-1])
        valid_BT = stacked_BT = None
        if lengths_B is not None:
            valid_BT = frame_mask(lengths_B, self.mel_clock, mels_BTC.shape[1])
            stacked_BT = frame_mask(lengths_B, self.clock, num_frames)
        normed_BTC = self.norm(mels_BTC, valid_BT)[:, : num_frames * self.stack]
        return Frames(normed_BTC.reshape(len(normed_BTC), num_frames, self.dim), stacked_BT)


def shift_bands(mels_BTC: Float[Tensor, "B T C"], most: int) -> Float[Tensor, "B T C"]:
    """Each row's bands moved by a random number in [-most, most], the outermost band repeated.

    Draws from the host's default generator, which the system seeds for every batch: no device is waited for.
    """
    rows, _, bands = mels_BTC.shape
    shifts_B = torch.randint(-most, most + 1, (rows, 1), device="cpu")
    places_BC = (torch.arange(bands) + shifts_B).clamp(0, bands - 1).to(mels_BTC.device, non_blocking=True)
    return mels_BTC.gather(2, places_BC[:, None].expand_as(mels_BTC))
