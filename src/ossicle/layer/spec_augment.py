"""SpecAugment (arXiv 1904.08779): spans of frames and of bands are hidden from the encoder in training."""

from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.seeds import generator
from ossicle.core.shapes import Float
from ossicle.ops.augmentation_features import random_spans


@final
class SpecAugment(nn.Module):
    """Zeros, the mean of normalised features, in random spans of frames and of bands (section 2; no time warping).

    In evaluation it changes nothing. What it draws comes from the device's default generator, as dropout's does, which
    the system seeds for every batch.

    SPIRAL (arXiv 2201.10207, section 4.1; numbers in its authors' code) hides shares that do not depend on a row's
    length, in spans of one length, and puts one vector, near zero and always the same, where frames are hidden; hidden
    bands are zero there as well.

    Args:
        feature_dim: Channels of the frontend's frames (C).
        num_time_masks: Spans of frames that are hidden in a row (m_T).
        time_mask_share: Share of a row's frames that begin a span, in place of a count; None takes the count.
        time_frames: Frames of a span at most (T).
        max_time_fraction: Share of a row's frames that a span has at most (p).
        num_band_masks: Spans of bands that are hidden in a row (m_F).
        band_mask_share: Share of the bands that begin a span, in place of a count; None takes the count.
        band_width: Bands of a span at most (F).
        num_bands: Bands of one spectrum, where a frame is several spectra side by side: these lose the same bands. None
            takes a frame's channels as one spectrum.
        fixed_length: Whether every span is as long as it may be; a length is uniform from 0 otherwise.
        fill_std: Deviation of the one vector that stands in hidden frames, the same in every run; 0 for zeros.

    Raises:
        ConfigError: A number is out of its range, or a frame is no whole number of spectra.
    """

    def __init__(
        self,
        feature_dim: int,
        *,
        num_time_masks: int = 2,
        time_mask_share: float | None = None,
        time_frames: int = 50,
        max_time_fraction: float = 1.0,
        num_band_masks: int = 2,
        band_mask_share: float | None = None,
        band_width: int = 27,
        num_bands: int | None = None,
        fixed_length: bool = False,
        fill_std: float = 0.0,
    ) -> None:
        super().__init__()
        bands = feature_dim if num_bands is None else num_bands
        if bands < 1 or feature_dim % bands:
            raise ConfigError(
                f"spec_augment.num_bands={bands} does not divide the frontend's {feature_dim} channels",
                "give the bands of one spectrum, or null",
            )
        counts = (num_time_masks, time_frames, num_band_masks, band_width, fill_std)
        shares = (max_time_fraction, time_mask_share or 0, band_mask_share or 0)
        if min(counts) < 0 or not all(0 <= share <= 1 for share in shares):
            raise ConfigError("a number of spec_augment is out of its range", "counts are 0 or more, shares in [0, 1]")
        self.num_time_masks = num_time_masks
        self.time_mask_share = time_mask_share
        self.time_frames = time_frames
        self.max_time_fraction = max_time_fraction
        self.num_band_masks: float = num_band_masks if band_mask_share is None else band_mask_share * bands
        self.band_width = band_width
        self.num_bands = bands
        self.fixed_length = fixed_length
        self.fill_C: Tensor | None
        drawn_C = torch.randn(feature_dim, device="cpu", generator=generator(0, 0, 0, "spec_augment"))
        fill_C = torch.empty(feature_dim).copy_(fill_std * drawn_C) if fill_std else None
        self.register_buffer("fill_C", fill_C, persistent=False)  # not saved: it is the same whenever it is drawn

    @override
    def forward(self, features_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Features with spans hidden in training; the same features in evaluation."""
        if not self.training:
            return features_BTC
        rows, frames, channels = features_BTC.shape
        longest = min(self.time_frames, int(self.max_time_fraction * frames))
        device = features_BTC.device
        num = self.num_time_masks if self.time_mask_share is None else self.time_mask_share * frames
        fixed = self.fixed_length
        hidden_BT = random_spans(rows, frames, num=num, longest=longest, fixed=fixed, device=device)
        hidden_BC = random_spans(
            rows, self.num_bands, num=self.num_band_masks, longest=self.band_width, fixed=fixed, device=device
        ).repeat(1, channels // self.num_bands)
        if self.fill_C is None:
            return torch.where(hidden_BT[:, :, None] | hidden_BC[:, None], 0.0, features_BTC)
        filled_BTC = torch.where(hidden_BT[:, :, None], self.fill_C.to(features_BTC.dtype), features_BTC)
        return torch.where(hidden_BC[:, None], 0.0, filled_BTC)


@runtime_checkable
class SpecAugmentFactory(Protocol):
    """Builds the layer once the frontend's width is known."""

    def __call__(self, *, feature_dim: int) -> SpecAugment:
        """A layer for frames of this width."""
        ...
