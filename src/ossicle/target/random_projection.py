"""Classes from a random projection and a random codebook that are never trained: BEST-RQ (arXiv 2202.01855)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.seeds import generator
from ossicle.core.shapes import Float, Int64
from ossicle.layer.normalisation import UtteranceNorm
from ossicle.ops.spectral import log_mel, spectral_clock
from ossicle.target.base import DiscreteTarget


class RandomProjection(DiscreteTarget):
    """The nearest of many random unit vectors to a random projection of normalised log-mel frames (section 3.1).

    The target reads the speech itself, whatever the frontend, and without what augmentation did to it: log-mel frames,
    each band normalised over the crop, stacked to the model's frame rate and centred on the model's frames (beyond the
    ends of the crop lies silence).
    Projection and codebook follow from ``seed`` alone, so all ranks hold the same, and are saved as buffers.

    Args:
        clock: The clock of the model's frames.
        feature_dim: Channels of the frontend's frames, which this target does not look at.
        num_classes: Codes (V).
        code_dim: Width of projection and codes.
        num_mels: Mel bands.
        window_ms: Length of a mel frame.
        hop_ms: Distance between mel frames; the model's stride must be a multiple.
        seed: Seed of projection and codebook.

    Raises:
        ConfigError: Fewer than two classes, or the model's stride is no multiple of the hop.
    """

    def __init__(
        self,
        clock: FrameClock,
        feature_dim: int,
        *,
        num_classes: int = 8192,
        code_dim: int = 16,
        num_mels: int = 80,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigError(f"target.num_classes={num_classes} leaves nothing to predict", "give at least 2")
        mel_clock = spectral_clock(window_ms=window_ms, hop_ms=hop_ms, rate_hz=clock.rate_hz)
        if clock.stride_samples % mel_clock.stride_samples:
            raise ConfigError(
                f"target.hop_ms = {hop_ms} is {mel_clock.stride_samples} samples, and a frame of the model takes"
                f" {clock.stride_samples}",
                "choose a hop that divides the frontend's stride",
            )
        self.clock = clock
        self.feature_dim = feature_dim
        self.num_classes = num_classes
        self.num_mels = num_mels
        self.window_ms = window_ms
        self.hop_ms = hop_ms
        self.stack = clock.stride_samples // mel_clock.stride_samples
        self.stacked_clock = mel_clock.then(self.stack, self.stack)
        self.norm = UtteranceNorm()
        projection, codebook = random_tables(num_mels * self.stack, code_dim, num_classes, seed)
        device = torch.get_default_device()  # drawn on the host, so that the values are one device's, then moved
        self.projection_CK: Tensor
        self.codebook_VK: Tensor
        self.register_buffer("projection_CK", projection.to(device))
        self.register_buffer("codebook_VK", codebook.to(device))

    def frames(self, waveform_BS: Float[Tensor, "B S"]) -> Float[Tensor, "B T C"]:
        """Normalised, stacked log-mel frames on the model's clock, shape (B, T, num_mels * stack)."""
        rows, samples = waveform_BS.shape
        num_frames = self.clock.num_frames(samples)
        left = math.floor(self.stacked_clock.centre_samples(0) - self.clock.centre_samples(0))
        right = self.stacked_clock.num_samples(num_frames) - samples - left  # negative amounts cut
        mels_BTC = log_mel(
            functional.pad(waveform_BS, (left, right)),
            num_mels=self.num_mels,
            window_ms=self.window_ms,
            hop_ms=self.hop_ms,
            rate_hz=self.clock.rate_hz,
        )
        return self.norm(mels_BTC).reshape(rows, num_frames, self.stack * self.num_mels)

    @override
    @torch.no_grad()
    def forward(self, batch: Batch, clock: FrameClock) -> Int64[Tensor, "B T"]:
        if clock != self.clock:
            raise ConfigError(
                f"the target was built for {self.clock} and is asked for {clock}", "build it for this model"
            )
        with torch.autocast(batch.waveform_BS.device.type, enabled=False):
            frames_BTC = self.frames(batch.speech.float())
            return nearest_code(frames_BTC, self.projection_CK, self.codebook_VK)


def nearest_code(
    frames_BTC: Float[Tensor, "B T C"], projection_CK: Float[Tensor, "C K"], codebook_VK: Float[Tensor, "V K"]
) -> Int64[Tensor, "B T"]:
    """Code at the least distance from the projected frame, both scaled to unit length: the largest cosine (eq. 1).

    Args:
        frames_BTC: Frames.
        projection_CK: Projection.
        codebook_VK: Codes of unit length.
    """
    # The length of a projected frame scales all its scores alike, and so is never divided out.
    return (frames_BTC @ projection_CK @ codebook_VK.t()).argmax(-1)


def random_tables(dim: int, code_dim: int, num_codes: int, seed: int) -> tuple[Tensor, Tensor]:
    """A Xavier-uniform projection (dim, code_dim) and normal codes of unit length (num_codes, code_dim), on the host.

    Args:
        dim: Width of the frames.
        code_dim: Width of the codes.
        num_codes: Codes (V).
        seed: What both follow from.
    """
    source = generator(seed, 0, 0, "random_projection")
    with torch.device("cpu"):
        projection = nn.init.xavier_uniform_(torch.empty(dim, code_dim), generator=source)
        codebook = torch.randn(num_codes, code_dim, generator=source)
    return projection, functional.normalize(codebook, dim=-1)
