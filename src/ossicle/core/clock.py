"""The exact relation between waveform samples and frames."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class FrameClock:
    """Which samples a frame sees: frame t covers samples [offset + t * stride, offset + t * stride + kernel).

    Clocks compose: a stack of strided convolutions has one clock, made by :meth:`then` from layer to layer, and floor
    divisions nest exactly, so :meth:`num_frames` is what the stack really returns.

    Args:
        kernel_samples: Receptive field of one frame.
        stride_samples: Distance between the starts of neighbouring frames.
        offset_samples: First sample of frame 0's field; negative where the input is padded on the left.
        padding_samples: Samples of padding on both sides together.
        rate_hz: Samples a second.
    """

    kernel_samples: int = 1
    stride_samples: int = 1
    offset_samples: int = 0
    padding_samples: int = 0
    rate_hz: int = 16_000

    def then(self, kernel: int, stride: int = 1, pad_left: int = 0, pad_right: int = 0) -> Self:
        """The clock after one more layer, whose kernel, stride and padding are counted in this clock's frames."""
        return type(self)(
            kernel_samples=self.kernel_samples + (kernel - 1) * self.stride_samples,
            stride_samples=self.stride_samples * stride,
            offset_samples=self.offset_samples - pad_left * self.stride_samples,
            padding_samples=self.padding_samples + (pad_left + pad_right) * self.stride_samples,
            rate_hz=self.rate_hz,
        )

    def num_frames(self, num_samples: int) -> int:
        """Frames that num_samples samples give; 0 where they are fewer than one field."""
        room = num_samples + self.padding_samples - self.kernel_samples
        return max(0, room // self.stride_samples + 1)

    def num_samples(self, num_frames: int) -> int:
        """The fewest samples that give num_frames frames."""
        if num_frames <= 0:
            return 0
        return (num_frames - 1) * self.stride_samples + self.kernel_samples - self.padding_samples

    def centre_samples(self, frame: int) -> float:
        """The middle of a frame's field, in samples from the start of the waveform."""
        return self.offset_samples + frame * self.stride_samples + (self.kernel_samples - 1) / 2

    @property
    def frames_per_s(self) -> float:
        """Frames a second."""
        return self.rate_hz / self.stride_samples

    def agrees_with(self, other: "FrameClock") -> bool:
        """Whether frame t of both means the same moment: one rate and stride, centres within half a stride."""
        same_steps = (self.stride_samples, self.rate_hz) == (other.stride_samples, other.rate_hz)
        return same_steps and abs(self.centre_samples(0) - other.centre_samples(0)) <= self.stride_samples / 2
