"""Changes of waveforms, row by row and for all rows at once: levels, overlays, echoes and noise."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.core.errors import DataError
from ossicle.core.shapes import Bool, Float, Int64

SILENCE_POWER = 1e-9
"""Mean square (-90 dB of full scale) below which a sound is silence and is never made louder."""

_TAIL = 1e-6  # probability that more rows than there is room for are chosen


@functools.cache
def most_rows(rows: int, probability: float) -> int:
    """The least count of rows that independent draws exceed with a probability below one in a million.

    Args:
        rows: Rows of the batch (B).
        probability: Probability of each row.

    Returns:
        Between 1 and B.
    """
    if probability >= 1:
        return rows
    beyond = 1.0
    for count in range(rows):
        beyond -= math.comb(rows, count) * probability**count * (1 - probability) ** (rows - count)
        if beyond < _TAIL:
            return max(1, count)
    return rows


def pick_rows(
    rows: int, probability: float, generator: torch.Generator
) -> tuple[Int64[Tensor, " R"], Bool[Tensor, " R"]]:
    """Choose rows, each by itself, and give them first among as many as will nearly always hold them.

    What is done to rows is then done to few of them, at a shape that does not depend on the draw.

    Args:
        rows: Rows of the batch (B).
        probability: Probability of each row.
        generator: Source of the draws; what is returned lies on its device.

    Returns:
        Distinct rows, shape (R,) with R = :func:`most_rows`, and True for those that were chosen.
    """
    chosen_B = torch.rand(rows, generator=generator, device=generator.device) < probability
    rows_R = chosen_B.to(torch.uint8).argsort(descending=True, stable=True)[: most_rows(rows, probability)]
    return rows_R, chosen_B.index_select(0, rows_R)


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> Float[Tensor, " B"]:
    """Numbers between low and high, shape (count,), on the generator's device."""
    return torch.rand(count, generator=generator, device=generator.device) * (high - low) + low


def mean_power(waveform_BS: Float[Tensor, "B S"]) -> Float[Tensor, " B"]:
    """Mean square of each row."""
    return waveform_BS.square().mean(-1)


def scale_to_ratio(
    power_B: Float[Tensor, " B"], other_power_B: Float[Tensor, " B"], ratio_db_B: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """The factor after which the first power is ratio_db above the second; 0 where the second is silence.

    Args:
        power_B: Mean squares of what is kept as it is.
        other_power_B: Mean squares of what is scaled.
        ratio_db_B: Wanted ratios in decibels.
    """
    heard_B = other_power_B > SILENCE_POWER
    wanted_B = power_B * 10 ** (-ratio_db_B / 10)
    return torch.where(heard_B, (wanted_B / other_power_B.clamp(min=SILENCE_POWER)).sqrt(), 0.0)


def add_noise(
    speech_BS: Float[Tensor, "B S"], noise_BS: Float[Tensor, "B S"], snr_db_B: Float[Tensor, " B"]
) -> Float[Tensor, "B S"]:
    """Speech with noise over the whole row, at a ratio of their powers over the row.

    Args:
        speech_BS: Speech.
        noise_BS: Noise at any level; silence adds nothing.
        snr_db_B: Power of speech over power of noise, in decibels.
    """
    scale_B = scale_to_ratio(mean_power(speech_BS), mean_power(noise_BS), snr_db_B)
    return speech_BS + scale_B[:, None] * noise_BS


def overlay(
    speech_BS: Float[Tensor, "B S"],
    other_BS: Float[Tensor, "B S"],
    ratio_db_B: Float[Tensor, " B"],
    *,
    starts_B: Int64[Tensor, " B"],
    other_starts_B: Int64[Tensor, " B"],
    lengths_B: Int64[Tensor, " B"],
) -> Float[Tensor, "B S"]:
    """Speech with a segment of another sound added: utterance mixing (arXiv 2110.13900, algorithm 1).

    The ratio is that of the mean powers of the whole rows, as in the paper, whatever the segment holds.

    Args:
        speech_BS: The primary utterances.
        other_BS: The secondary utterances, or noises.
        ratio_db_B: Power of the primary over that of the secondary, in decibels.
        starts_B: First sample of the primary that is covered.
        other_starts_B: First sample of the segment in the secondary.
        lengths_B: Samples of the segment; both ends lie in the rows.
    """
    samples = speech_BS.shape[1]
    since_BS = torch.arange(samples, device=speech_BS.device)[None] - starts_B[:, None]
    covered_BS = (since_BS >= 0) & (since_BS < lengths_B[:, None])
    segment_BS = other_BS.gather(1, (since_BS + other_starts_B[:, None]).clamp(0, samples - 1))
    scale_B = scale_to_ratio(mean_power(speech_BS), mean_power(other_BS), ratio_db_B)
    return torch.where(covered_BS, speech_BS + scale_B[:, None] * segment_BS, speech_BS)


@functools.cache
def fast_length(samples: int) -> int:
    """The least length from samples on with no prime factor above 5: what Fourier transforms are fast at."""
    length = max(1, samples)
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


def reverberate(
    waveform_BS: Float[Tensor, "B S"], responses_BK: Float[Tensor, "B K"], lead: int
) -> Float[Tensor, "B S"]:
    """Each row convolved with its own impulse response, in time and at the level that it had.

    The direct path is sample ``lead`` of a response and becomes sample 0, so what was said stays where it was. What
    rings on beyond the row's end is cut. Each row keeps its mean square.

    Args:
        waveform_BS: Dry sound.
        responses_BK: Impulse responses.
        lead: Sample of the direct path in every response, at most K - 1.
    """
    samples, taps = waveform_BS.shape[1], responses_BK.shape[1]
    size = fast_length(samples + taps - 1)
    spectrum_BF = torch.fft.rfft(waveform_BS, n=size) * torch.fft.rfft(responses_BK, n=size)
    wet_BS = torch.fft.irfft(spectrum_BF, n=size)[:, lead : lead + samples]
    scale_B = scale_to_ratio(mean_power(waveform_BS), mean_power(wet_BS), wet_BS.new_zeros(len(wet_BS)))
    return scale_B[:, None] * wet_BS


def align_responses(responses: Sequence[Tensor], lead: int, length: int) -> Float[Tensor, "R K"]:
    """Recorded impulse responses of any lengths as rows with their loudest sample, the direct path, in one place.

    Args:
        responses: Impulse responses, each of shape (samples,).
        lead: Where the direct path stands in a row: so many samples before it are kept.
        length: Samples of a row (K): what lasts longer is cut, what is shorter ends in zeros.

    Raises:
        DataError: There is none, or one is silent.
    """
    rows = []
    for number, response_K in enumerate(responses):
        direct = int(response_K.abs().argmax())
        if not float(response_K[direct].abs()) > 0:
            raise DataError(f"impulse response {number} is silent", "remove the file")
        before_K = functional.pad(response_K[max(0, direct - lead) : direct], (max(0, lead - direct), 0))
        row_K = torch.cat([before_K, response_K[direct:]])[:length]
        rows.append(functional.pad(row_K, (0, length - len(row_K))))
    if not rows:
        raise DataError("there are no impulse responses", "name a folder that holds some")
    return torch.stack(rows)


def decaying_responses(
    noise_BK: Float[Tensor, "B K"],
    decay_s_B: Float[Tensor, " B"],
    direct_db_B: Float[Tensor, " B"],
    *,
    gap_samples: int,
    rate_hz: int,
) -> Float[Tensor, "B K"]:
    """Made-up impulse responses: a direct path, a gap, and noise that decays exponentially (J. A. Moorer 1979).

    Args:
        noise_BK: White noise, shape (B, K).
        decay_s_B: Seconds in which the tail falls by 60 dB.
        direct_db_B: Energy of the direct path over that of the tail, in decibels.
        gap_samples: Samples between the direct path, which is sample 0, and the tail's first; at least 1, below K.
        rate_hz: Samples a second.
    """
    places_K = torch.arange(noise_BK.shape[1], device=noise_BK.device)
    fall_BK = 10 ** (-3.0 * places_K[None] / (decay_s_B[:, None] * rate_hz))
    tail_BK = torch.where(places_K >= gap_samples, noise_BK * fall_BK, 0.0)
    energy_B = tail_BK.square().sum(-1)
    scale_B = (10 ** (-direct_db_B / 10) / energy_B.clamp(min=torch.finfo(torch.float32).tiny)).sqrt()
    return torch.where(places_K == 0, 1.0, scale_B[:, None] * tail_BK)


def colour(
    normal_BF2: Float[Tensor, "B F two"],
    exponent_B: Float[Tensor, " B"],
    *,
    samples: int,
    low_hz: float,
    rate_hz: int,
) -> Float[Tensor, "B S"]:
    """Gaussian noise whose power falls with frequency as f to the power of minus exponent: 0 white, 1 pink, 2 brown.

    Nothing lies below ``low_hz``: what no one hears would otherwise hold most of brown noise's power.

    Args:
        normal_BF2: Normal numbers, shape (B, F, 2) with F = :func:`fast_length` (samples) // 2 + 1.
        exponent_B: Exponents.
        samples: Samples of a row (S).
        low_hz: Lowest frequency.
        rate_hz: Samples a second.
    """
    size = fast_length(samples)
    hertz_F = torch.arange(normal_BF2.shape[1], device=normal_BF2.device) * (rate_hz / size)
    shape_BF = torch.where(
        hertz_F >= low_hz, (hertz_F.clamp(min=low_hz) / low_hz)[None] ** (-exponent_B[:, None] / 2), 0.0
    )
    return torch.fft.irfft(torch.view_as_complex(normal_BF2) * shape_BF, n=size, norm="ortho")[:, :samples]
