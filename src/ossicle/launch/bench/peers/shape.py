"""HuBERT as every system builds it: its sizes, its frames, its masks and what they cost."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.transforms import MelSpectrogram

from ossicle.core.seeds import generator
from ossicle.ops.masking import mask_indices, masked_flags

KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
_WINDOW, _HOP, _STACK, _MELS = 400, 160, 2, 80


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a HuBERT.

    Args:
        experiment: The experiment of Ossicle that it is.
        wave: Whether it begins with convolutions on the waveform; else with log-mel frames.
        conv_dim: Channels of the convolutions.
        dim: Width (D).
        layers: Blocks (L).
        heads: Attention heads.
        ffn_dim: Width of feed-forward layers (F).
        classes: Classes (V).
        final_dim: Width in which frames and classes are compared.
        norm_first: Whether blocks normalise what comes in.
        dropout: Of attention, of hidden states and of embedded frames.
        layer_drop: Probability that a block is left out.
        position_kernel: Kernel of the position convolution.
        position_groups: Its groups.
        start_probability: Probability that a frame starts a masked span of 10.
        all_frames: Whether the classes of frames that are not masked are predicted too.
    """

    experiment: str = "hubert_base"
    wave: bool = True
    conv_dim: int = 512
    dim: int = 768
    layers: int = 12
    heads: int = 12
    ffn_dim: int = 3072
    classes: int = 500
    final_dim: int = 256
    norm_first: bool = False
    dropout: float = 0.1
    layer_drop: float = 0.0
    position_kernel: int = 128
    position_groups: int = 16
    start_probability: float = 0.08
    all_frames: bool = False

    @property
    def feature_dim(self) -> int:
        """Channels of the frames that go into the encoder (C)."""
        return self.conv_dim if self.wave else _STACK * _MELS

    def frame_counts(self, samples: int) -> list[int]:
        """Frames after each convolution, or of the log-mel frontend."""
        if not self.wave:
            return [((samples - _WINDOW) // _HOP + 1) // _STACK]
        counts = [samples]
        for kernel, stride in zip(KERNELS, STRIDES, strict=True):
            counts.append((counts[-1] - kernel) // stride + 1)
        return counts[1:]

    def frames(self, samples: int) -> int:
        """Frames of the encoder (T)."""
        return self.frame_counts(samples)[-1]

    def macs(self, samples: int) -> int:
        """Multiply-accumulates of an encoder's forward pass over one waveform.

        Products and convolutions as the papers write them, whatever a system makes of them; log-mel frames, norms and
        the head are left out.
        """
        counts = self.frame_counts(samples)
        frames = counts[-1]
        macs = 0
        if self.wave:
            macs += counts[0] * self.conv_dim * KERNELS[0]
            macs += sum(
                count * self.conv_dim**2 * kernel for count, kernel in zip(counts[1:], KERNELS[1:], strict=True)
            )
        macs += frames * self.feature_dim * self.dim
        macs += frames * self.dim * self.dim // self.position_groups * self.position_kernel
        block = 4 * self.dim**2 + 2 * self.dim * self.ffn_dim + 2 * frames * self.dim
        return macs + self.layers * frames * block

    def masked_flags(self, rows: int, samples: int, seed: int, device: str) -> Tensor:
        """True where a frame is masked, with as many in every row, bool, shape (B, T). Drawn once, before any step."""
        masked_BM = mask_indices(
            rows,
            self.frames(samples),
            start_probability=self.start_probability,
            length=10,
            generator=generator(seed, 0, 0, "mask", torch.device("cpu")),
        )
        return masked_flags(masked_BM, self.frames(samples)).to(device)

    def labels(self, rows: int, samples: int, seed: int, device: str) -> Tensor:
        """A random class for every frame, int64, shape (B, T)."""
        drawn = torch.Generator().manual_seed(seed)
        return torch.randint(self.classes, (rows, self.frames(samples)), generator=drawn).to(device)


SHAPES = {
    "hubert_base": Shape(),
    "hubert_tiny": Shape(
        experiment="hubert_tiny",
        wave=False,
        dim=192,
        layers=3,
        heads=3,
        ffn_dim=768,
        norm_first=True,
        dropout=0.0,
        position_kernel=31,
        start_probability=0.04,
        all_frames=True,
    ),
}


class LogMelFrames(nn.Module):
    """Log-mel frames by torchaudio, two of 10 ms side by side, shape (B, T, C): stands where convolutions stood."""

    def __init__(self, rate_hz: int) -> None:
        super().__init__()
        self.mel = MelSpectrogram(rate_hz, n_fft=512, win_length=_WINDOW, hop_length=_HOP, n_mels=_MELS, center=False)

    def forward(self, waveform_BS: Tensor) -> Tensor:
        """Log-mel energies, each band normalised over the utterance."""
        with torch.autocast(waveform_BS.device.type, enabled=False):
            padded_BS = functional.pad(waveform_BS, (0, self.mel.n_fft - _WINDOW))  # torch pads a window to the FFT
            log_BCT = self.mel(padded_BS).clamp(min=1e-6).log()
            log_BCT = (log_BCT - log_BCT.mean(-1, keepdim=True)) / (log_BCT.std(-1, keepdim=True) + 1e-5)
        frames = log_BCT.shape[-1] // _STACK
        return log_BCT[..., : frames * _STACK].transpose(1, 2).reshape(len(log_BCT), frames, -1)


def conv_layers(shape: Shape) -> list[tuple[int, int, int]]:
    """Channels, kernel and stride of each convolution; the last has as many channels as the encoder takes."""
    channels = [shape.conv_dim] * (len(KERNELS) - 1) + [shape.feature_dim]
    return list(zip(channels, KERNELS, STRIDES, strict=True))
