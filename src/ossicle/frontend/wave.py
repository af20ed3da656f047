"""Strided convolutions over the waveform: wav2vec 2.0's feature encoder (arXiv 2006.11477, sections 2 and 4.2)."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final, final

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.batch import Frames
from ossicle.core.clock import FrameClock
from ossicle.core.shapes import Float, Int
from ossicle.frontend.base import Frontend
from ossicle.layer.convolution import ConvolutionBlock, NormalisedConvolution, WaveConvolution
from ossicle.layer.gradient import GradientScale
from ossicle.layer.normalisation import UtteranceNorm
from ossicle.layer.recompute import recomputed
from ossicle.ops.framing import frame_mask, require_one_frame

WAV2VEC2_CONVOLUTIONS: Final = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)


class ConvolutionalFrontend(Frontend):
    """A stack of convolutions, each with a norm and a GELU; subclasses say which norm.

    The layers are matrix products over channels-last frames, at lengths that every stride divides.

    Args:
        convolutions: Channels, kernel and stride of each layer, the two last counted in the frames that come in.
        conv_bias: Whether convolutions have a bias.
        gradient_scale: What the gradient into the stack is multiplied by.
        rate_hz: Samples a second of the waveform.
        normalise: Whether each row's real samples are brought to mean 0 and variance 1 first, as the large models'
            authors do (arXiv 2006.11477, section 2). They do it to whole utterances, before any is cropped; here it is
            the crop's mean and variance.

    Attributes:
        recompute: Whether training keeps nothing of a layer but what goes in, and makes it again on the way back.
        local: Whether the norms of its layers are of one frame each.
    """

    recompute: bool = False
    local: bool = False

    def __init__(
        self,
        convolutions: Sequence[Sequence[int]] = WAV2VEC2_CONVOLUTIONS,
        conv_bias: bool = False,
        gradient_scale: float = 0.1,
        rate_hz: int = 16_000,
        *,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.norm = UtteranceNorm() if normalise else None
        self.causal = self.local and not normalise
        clock = FrameClock(rate_hz=rate_hz)
        self.clocks: list[FrameClock] = []
        layers = []
        width = 1
        for index, (channels, kernel, stride) in enumerate(convolutions):
            layers.append(self.make_layer(index, width, channels, kernel, stride, bias=conv_bias))
            clock = clock.then(kernel, stride)
            self.clocks.append(clock)
            width = channels
        self.layers = nn.ModuleList(layers)
        self.gradient_scale = GradientScale(gradient_scale)
        self.clock = clock
        self.dim = width

    @abstractmethod
    def make_layer(
        self, index: int, in_channels: int, out_channels: int, kernel: int, stride: int, *, bias: bool
    ) -> WaveConvolution:
        """Convolution ``index`` with its norm."""

    @override
    def forward(self, waveform_BS: Float[Tensor, "B S"], lengths_B: Int[Tensor, " B"] | None = None) -> Frames:
        num_samples = waveform_BS.shape[-1]
        require_one_frame(num_samples, self.clock)
        if self.norm is not None:
            samples = FrameClock(rate_hz=self.clock.rate_hz)
            valid_BS = None if lengths_B is None else frame_mask(lengths_B, samples, num_samples)
            waveform_BS = self.norm(waveform_BS[..., None], valid_BS)[..., 0].to(waveform_BS.dtype)
        x_BTC = functional.pad(waveform_BS, (0, -num_samples % self.clock.stride_samples))[..., None]
        valid_BT = None
        for layer, clock in zip(self.layers, self.clocks, strict=True):
            if lengths_B is not None:
                valid_BT = frame_mask(lengths_B, clock, clock.num_frames(num_samples))
            run = recomputed(layer) if self.recompute and self.training else layer
            x_BTC = run(x_BTC, clock.num_frames(num_samples), valid_BT)
        return Frames(self.gradient_scale(x_BTC[:, : self.clock.num_frames(num_samples)]), valid_BT)


@final
class Wave(ConvolutionalFrontend):
    """wav2vec 2.0 and HuBERT base: the first convolution alone is normalised, each channel over the utterance."""

    @override
    def make_layer(
        self, index: int, in_channels: int, out_channels: int, kernel: int, stride: int, *, bias: bool
    ) -> WaveConvolution:
        if index == 0:
            return NormalisedConvolution(out_channels, kernel, stride, bias=bias)
        return ConvolutionBlock(in_channels, out_channels, kernel, stride, norm=nn.Identity(), bias=bias)


@final
class WaveLayerNorm(ConvolutionalFrontend):
    """wav2vec 2.0 and HuBERT large, XLS-R: every convolution is followed by a layer norm over channels."""

    local = True

    @override
    def make_layer(
        self, index: int, in_channels: int, out_channels: int, kernel: int, stride: int, *, bias: bool
    ) -> WaveConvolution:
        return ConvolutionBlock(in_channels, out_channels, kernel, stride, norm=nn.LayerNorm(out_channels), bias=bias)


@final
class WaveReLU(ConvolutionalFrontend):
    """CPC and wav2vec: every convolution is followed by a norm over channels and a ReLU (arXiv 1807.03748, 1904.05862).

    The norm of each frame alone is that of CPC's public code. wav2vec normalises over time as well, and so lets a frame
    hear what comes after it, which is what the model is trained to foresee.
    """

    local = True

    @override
    def make_layer(
        self, index: int, in_channels: int, out_channels: int, kernel: int, stride: int, *, bias: bool
    ) -> WaveConvolution:
        norm, relu = nn.LayerNorm(out_channels), nn.ReLU()
        return ConvolutionBlock(in_channels, out_channels, kernel, stride, norm=norm, bias=bias, activation=relu)
