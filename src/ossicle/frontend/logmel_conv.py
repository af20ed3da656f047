"""Log-mel frames shortened by convolutions: Fast-HuBERT (arXiv 2309.13860), BEST-RQ (arXiv 2202.01855)."""

from collections.abc import Sequence
from typing import final

from torch import Tensor
from typing_extensions import override

from ossicle.core.batch import Frames
from ossicle.core.shapes import Float, Int
from ossicle.frontend.base import Frontend
from ossicle.frontend.logmel import LogMel, Norm
from ossicle.layer.gradient import GradientScale
from ossicle.layer.shortening import Shortening, shortened_clock
from ossicle.ops.framing import require_one_frame


@final
class LogMelConv(Frontend):
    """Log-mel energies, normalised over the utterance or by all data, then convolutions over time that lower the rate.

    Args:
        convolutions: Channels, kernel (odd) and stride of each: two of stride 2 make 25 frames a second from 100.
        num_mels: Mel bands.
        window_ms: Length of a mel frame.
        hop_ms: Distance between mel frames.
        rate_hz: Samples a second of the waveform.
        low_hz: Lower edge of the first band.
        high_hz: Upper edge of the last band; 0 or less counts from half the rate.
        band_shift: In training, bands that an utterance moves up or down by at most: see :class:`LogMel`.
        gradient_scale: What the gradient into the convolutions is multiplied by.
        gated: Whether gated linear units follow the convolutions, and no norm: see :class:`Shortening`.
        norm: By what bands are normalised: see :class:`LogMel`.

    Raises:
        ConfigError: An even kernel, or numbers that :class:`LogMel` refuses.
    """

    def __init__(
        self,
        convolutions: Sequence[Sequence[int]] = ((512, 5, 2), (512, 5, 1)),
        *,
        num_mels: int = 80,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        rate_hz: int = 16_000,
        low_hz: float = 20.0,
        high_hz: float = 0.0,
        band_shift: int = 0,
        gradient_scale: float = 1.0,
        gated: bool = False,
        norm: Norm = "utterance",
    ) -> None:
        super().__init__()
        self.mels = LogMel(
            num_mels=num_mels,
            window_ms=window_ms,
            hop_ms=hop_ms,
            stack=1,
            rate_hz=rate_hz,
            low_hz=low_hz,
            high_hz=high_hz,
            band_shift=band_shift,
            norm=norm,
        )
        self.causal = self.mels.causal
        self.shorten = Shortening(num_mels, convolutions, gated=gated)
        self.gradient_scale = GradientScale(gradient_scale)
        self.clock = shortened_clock(self.mels.clock, convolutions)
        self.dim = convolutions[-1][0]

    @override
    def forward(self, waveform_BS: Float[Tensor, "B S"], lengths_B: Int[Tensor, " B"] | None = None) -> Frames:
        require_one_frame(waveform_BS.shape[-1], self.clock)
        mels = self.mels(waveform_BS, lengths_B)
        features_BTC, valid_BT = self.shorten(mels.features_BTC, mels.valid_BT)
        return Frames(self.gradient_scale(features_BTC), valid_BT)
