"""Small batches, and parts that need no files."""

from collections.abc import Callable
from functools import partial

import torch

from ossicle.augmentation.base import Augmentation
from ossicle.augmentation.chain import Chain
from ossicle.augmentation.gain import Gain
from ossicle.augmentation.mixing import Mixing
from ossicle.augmentation.noise import Noise
from ossicle.augmentation.noise_source import ColouredNoise
from ossicle.augmentation.response_source import DecayingResponses
from ossicle.augmentation.reverberation import Reverberation
from ossicle.augmentation.speed import Speed
from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock

CLOCK = FrameClock().then(400, 320)

PARTS: dict[str, Callable[..., Augmentation]] = {
    "gain": Gain,
    "mixing": partial(Mixing, noise=ColouredNoise, noise_probability=0.4),
    "noise": partial(Noise, noise=ColouredNoise),
    "reverberation": partial(Reverberation, responses=partial(DecayingResponses, length_s=0.1)),
    "speed": Speed,
}
PARTS["chain"] = partial(Chain, parts={name: partial(PARTS[name], probability=0.6) for name in sorted(PARTS)})


def make_batch(rows: int = 6, samples: int = 4_000, position: int = 3, *, labels: bool = True) -> Batch:
    """Noise of differing loudness, with the frame's number as its label."""
    source = torch.Generator().manual_seed(0)
    waveform_BS = torch.randn(rows, samples, generator=source) * (torch.rand(rows, 1, generator=source) * 0.2 + 0.05)
    index_B = torch.arange(rows)
    labels_BT = torch.arange(CLOCK.num_frames(samples), dtype=torch.int16).repeat(rows, 1) if labels else None
    return Batch(waveform_BS, position, index_B, torch.zeros_like(index_B), labels_BT)
