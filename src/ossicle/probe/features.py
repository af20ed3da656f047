"""What a probe may look at: the layers of a frozen encoder, and the spectra that it has to beat."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.core.clock import FrameClock
from ossicle.core.shapes import Float
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.ops.spectral import log_mel, mfcc, spectral_clock

_WINDOW_MS, _HOP_MS = 25.0, 20.0  # 50 frames a second, as the encoders' frames are


class Featurizer(ABC):
    """Frames of an utterance, one row a layer, on a stated clock.

    Attributes:
        name: How records call it: ``logmel``, ``mfcc``, ``untrained``, ``pretrained``.
        clock: The clock of the frames.
        layers: Names of the layers, in the order of the first axis.
    """

    name: str
    clock: FrameClock
    layers: tuple[str, ...]

    @abstractmethod
    def extract(self, waveform_S: Float[Tensor, " S"]) -> Float[Tensor, "L T D"]:
        """Features of one whole utterance, float32, without gradient.

        Args:
            waveform_S: Samples in [-1, 1] at ``clock.rate_hz``, shape (S,).

        Returns:
            Frames of every layer, shape (L, T, D) with T = ``clock.num_frames(S)``.
        """


@final
class EncoderFeatures(Featurizer):
    """Every layer of a frozen encoder: layer 0 is what enters the first block, layer L what leaves the last.

    Args:
        model: The encoder; its mode (train or eval) and its gradients are left as they are.
        name: ``pretrained`` or ``untrained``.
    """

    def __init__(self, model: SpeechEncoder, name: str = "pretrained") -> None:
        self.model = model
        self.name = name
        self.clock = model.clock
        self.layers = tuple(str(layer) for layer in range(model.num_layers + 1))
        self.device = next(model.parameters()).device

    @override
    def extract(self, waveform_S: Float[Tensor, " S"]) -> Float[Tensor, "L T D"]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                output = self.model(waveform_S[None].to(self.device), layers=True)
        finally:
            self.model.train(was_training)
        return torch.cat(output.layers).float()


class SpectralFeatures(Featurizer):
    """A spectrum at 50 Hz, as it is and normalised to mean 0 and variance 1 over the utterance.

    The level and colour of a voice help to tell speakers and hinder to tell phones: both views are layers, and the
    better one is chosen as an encoder's layer is.
    """

    layers = ("raw", "normalised")

    def __init__(self) -> None:
        self.clock = spectral_clock(window_ms=_WINDOW_MS, hop_ms=_HOP_MS)

    @abstractmethod
    def spectrum(self, waveform_BS: Float[Tensor, "B S"]) -> Float[Tensor, "B T D"]:
        """The spectrum of each frame."""

    @override
    def extract(self, waveform_S: Float[Tensor, " S"]) -> Float[Tensor, "L T D"]:
        with torch.inference_mode():
            raw_BTD = self.spectrum(waveform_S[None])
            std_B1D, mean_B1D = torch.std_mean(raw_BTD, dim=1, correction=0, keepdim=True)
            return torch.cat([raw_BTD, (raw_BTD - mean_B1D) / std_B1D.clamp(min=1e-5)]).float()


@final
class LogMelFeatures(SpectralFeatures):
    """80 log-mel energies."""

    name = "logmel"

    @override
    def spectrum(self, waveform_BS: Float[Tensor, "B S"]) -> Float[Tensor, "B T D"]:
        return log_mel(waveform_BS, window_ms=_WINDOW_MS, hop_ms=_HOP_MS)


@final
class MfccFeatures(SpectralFeatures):
    """13 cepstra with first and second differences."""

    name = "mfcc"

    @override
    def spectrum(self, waveform_BS: Float[Tensor, "B S"]) -> Float[Tensor, "B T D"]:
        return mfcc(waveform_BS, window_ms=_WINDOW_MS, hop_ms=_HOP_MS)
