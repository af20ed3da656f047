"""Frames of padded waveforms: how many are real, and which."""

import torch
from torch import Tensor

from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.core.shapes import Bool, Float, Int


def count_frames(lengths_B: Int[Tensor, " B"], clock: FrameClock) -> Int[Tensor, " B"]:
    """Real frames of each row: :meth:`FrameClock.num_frames` on a tensor of lengths in samples."""
    room = lengths_B + clock.padding_samples - clock.kernel_samples
    return (torch.div(room, clock.stride_samples, rounding_mode="floor") + 1).clamp(min=0)


def frame_mask(lengths_B: Int[Tensor, " B"], clock: FrameClock, num_frames: int) -> Bool[Tensor, "B T"]:
    """True where a frame sees real samples only, shape (B, T).

    Args:
        lengths_B: Real samples of each row.
        clock: The frames' clock.
        num_frames: Frames of the padded batch (T).
    """
    return torch.arange(num_frames, device=lengths_B.device)[None] < count_frames(lengths_B, clock)[:, None]


def slice_frames(waveform_BS: Float[Tensor, "B S"], kernel: int, stride: int) -> Float[Tensor, "B T kernel"]:
    """Overlapping windows of samples as a view, without padding; no frames where samples are fewer than one window."""
    if waveform_BS.shape[-1] < kernel:
        return waveform_BS.new_empty((*waveform_BS.shape[:-1], 0, kernel))
    return waveform_BS.unfold(-1, kernel, stride)


def require_one_frame(num_samples: int, clock: FrameClock) -> None:
    """Refuse a waveform that is shorter than one frame.

    Raises:
        DataError: If the waveform has fewer samples than a frame sees.
    """
    if clock.num_frames(num_samples) == 0:
        raise DataError(
            f"{num_samples} samples are fewer than the {clock.num_samples(1)} of one frame",
            "leave out utterances that are this short (the shortest crop is set with the data)",
        )
