"""Speech played faster or slower: each row resampled by its own rational factor, and labels that follow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float, Int, Int64

_MOST_PHASES = 200


@dataclass(frozen=True, slots=True)
class SpeedTable:
    """Filters of a few speeds, all with one count of phases, so that rows of different speeds share every shape.

    With P phases, output sample q * P + p of speed o / P lies at input sample q * o + p * o / P.

    Args:
        steps_V: Input samples that P output samples pass over (o), int64, shape (V,).
        kernels_VPW: Taps, shape (V, P, W): tap w of phase p weighs input sample q * o + w - reach.
        reach: Input samples that a filter sees before its block.
        most_steps: The largest of ``steps_V``, known to the host.
    """

    steps_V: Tensor
    kernels_VPW: Tensor
    reach: int
    most_steps: int

    @property
    def phases(self) -> int:
        """Output samples of a block (P)."""
        return self.kernels_VPW.shape[1]

    def num_samples(self, samples: int) -> int:
        """Output samples that every speed can make from so many: no more than these, fewer where a speed is above 1."""
        return min(samples, (samples - 1) * self.phases // self.most_steps + 1)

    def to(self, device: torch.device) -> "SpeedTable":
        """The same table on another device."""
        return SpeedTable(self.steps_V.to(device), self.kernels_VPW.to(device), self.reach, self.most_steps)


def speed_table(factors: Sequence[float], *, zeros: int = 16, rolloff: float = 0.95) -> SpeedTable:
    """Linear-phase low-pass filters for speeds: a sinc under a Hann window, cut at the lower of the two rates.

    Args:
        factors: Speeds, each a ratio of small integers: 1.1 is faster by a tenth.
        zeros: Zero crossings of the sinc to each side.
        rolloff: Cut-off as a share of the lower Nyquist frequency.

    Returns:
        Filters in the order of the factors.

    Raises:
        ConfigError: A factor is not positive, is 1, or the factors share no small denominator.
    """
    ratios = [Fraction(factor).limit_denominator(_MOST_PHASES) for factor in factors]
    phases = math.lcm(*(ratio.denominator for ratio in ratios)) if ratios else 0
    exact = all(math.isclose(ratio, factor, rel_tol=1e-6) for ratio, factor in zip(ratios, factors, strict=True))
    if not ratios or not exact or min(ratios) <= 0 or 1 in ratios or phases > _MOST_PHASES:
        raise ConfigError(
            f"speeds {list(factors)} cannot be made", "give ratios of small integers other than 1, such as [0.9, 1.1]"
        )
    steps = [int(ratio * phases) for ratio in ratios]
    cuts = [rolloff * min(1.0, phases / step) for step in steps]
    reach = max(math.ceil(zeros / cut) for cut in cuts)
    taps_W = torch.arange(2 * reach + max(steps) + 1, dtype=torch.float64) - reach
    phase_P = torch.arange(phases, dtype=torch.float64)
    kernels = []
    for step, cut in zip(steps, cuts, strict=True):
        # in zero crossings from the centre of the filter
        away_PW = ((taps_W[None] - phase_P[:, None] * step / phases) * cut).clamp(-zeros, zeros)
        kernels.append(torch.sinc(away_PW) * (away_PW * math.pi / (2 * zeros)).cos().square() * cut)
    return SpeedTable(torch.tensor(steps), torch.stack(kernels).float(), reach, max(steps))


def latest_starts(table: SpeedTable, choice_B: Int64[Tensor, " B"], samples: int) -> Int64[Tensor, " B"]:
    """The last sample at which each row can start and not run beyond its end, int64, shape (B,).

    Args:
        table: Filters.
        choice_B: Speed of each row, by its place in the table.
        samples: Input samples of a row.
    """
    steps_B = table.steps_V.index_select(0, choice_B)
    last = table.num_samples(samples) - 1
    return samples - 1 + torch.div(-last * steps_B, table.phases, rounding_mode="floor")


def change_speed(
    waveform_BS: Float[Tensor, "B S"],
    table: SpeedTable,
    choice_B: Int64[Tensor, " B"],
    starts_B: Int64[Tensor, " B"],
) -> Float[Tensor, "B _"]:
    """Each row from its start at its own speed, shape (B, ``table.num_samples(S)``); silence lies beyond the ends.

    Args:
        waveform_BS: Samples.
        table: Filters.
        choice_B: Speed of each row, by its place in the table.
        starts_B: Input sample that becomes output sample 0, from 0 to :func:`latest_starts`.
    """
    rows, samples = waveform_BS.shape
    made = table.num_samples(samples)
    width = table.kernels_VPW.shape[2]
    blocks = -(-made // table.phases)
    steps_B = table.steps_V.index_select(0, choice_B)
    firsts_BQ = starts_B[:, None] + torch.arange(blocks, device=waveform_BS.device) * steps_B[:, None]
    places_BQW = firsts_BQ[:, :, None] + torch.arange(width, device=waveform_BS.device)
    padded_BS = torch.nn.functional.pad(waveform_BS, (table.reach, width - 1 - table.reach))
    windows_BQW = padded_BS.gather(1, places_BQW.reshape(rows, -1)).reshape(rows, blocks, width)
    kernels_BWP = table.kernels_VPW.index_select(0, choice_B).transpose(1, 2)
    return torch.bmm(windows_BQW, kernels_BWP).reshape(rows, -1)[:, :made]


def follow_labels(
    labels_BT: Int[Tensor, "B T"],
    clock: FrameClock,
    starts_B: Int64[Tensor, " B"],
    factors_B: Float[Tensor, " B"],
    samples: int,
) -> Int[Tensor, "B _"]:
    """Labels of rows whose speed was changed: each frame takes the label of the frame that its centre came from.

    Args:
        labels_BT: Labels of the frames before.
        clock: The frames' clock.
        starts_B: Input sample that became output sample 0.
        factors_B: Input samples an output sample: the speed.
        samples: Samples of a row now.

    Returns:
        Labels, shape (B, ``clock.num_frames(samples)``): the nearest frame's.
    """
    frames = clock.num_frames(samples)
    first = clock.centre_samples(0)
    centres_T = torch.arange(frames, device=labels_BT.device) * clock.stride_samples + first
    came_from_BT = starts_B[:, None] + factors_B[:, None] * centres_T
    nearest_BT = ((came_from_BT - first) / clock.stride_samples).round().long()
    return labels_BT.gather(1, nearest_BT.clamp(0, labels_BT.shape[1] - 1))
