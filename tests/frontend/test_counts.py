"""Parameters and multiply-accumulates of frontends against formulas by hand."""

from collections.abc import Callable
from math import prod

import pytest
import torch

from ossicle.frontend.base import Frontend
from ossicle.frontend.logmel import LogMel
from ossicle.frontend.logmel_conv import LogMelConv
from ossicle.frontend.wave import Wave, WaveLayerNorm, WaveReLU
from ossicle.launch.parts import option
from ossicle.meter.flops import count_macs

CONVOLUTIONS = ((8, 10, 5), (12, 3, 2), (16, 2, 2))
COMPACT = [tuple(layer) for layer in option("wave_compact", "frontend")["convolutions"]]
SAMPLES, MELS, BINS = 4000, 20, 257
KINDS: dict[str, tuple[Callable[[], Frontend], int]] = {
    # beside the weights: a norm of the first layer; a norm and a bias of every layer; a norm of every layer
    "group norm": (lambda: Wave(CONVOLUTIONS), 2 * 8),
    "layer norms": (lambda: WaveLayerNorm(CONVOLUTIONS, conv_bias=True), 3 * (8 + 12 + 16)),
    "ReLU": (lambda: WaveReLU(CONVOLUTIONS), 2 * (8 + 12 + 16)),
    "compact": (lambda: Wave(COMPACT), 2 * 64),
}


def counts(make: Callable[[], Frontend]) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of one row."""
    with torch.device("meta"):
        frontend = make().eval()
    waveform_BS = torch.empty(1, SAMPLES, device="meta")
    return sum(p.numel() for p in frontend.parameters()), count_macs(lambda: frontend(waveform_BS))


def convolved(places: int, channels: int, wide: int, kernel: int, stride: int) -> int:
    """Products of one convolution: taps are taken a stride at a time, those after the first from one place later each.

    Places are those of whole strides: some at the end hold no frame.
    """
    groups = [min(stride, kernel - first) for first in range(0, kernel, stride)]
    return sum((places - shift) * taps * channels * wide for shift, taps in enumerate(groups))


def normalised(places: int, frames: int, wide: int, kernel: int) -> int:
    """Products of the first convolution where its norm is folded into its filters.

    Covariances of the windows that frames see, their means and variances behind each filter, the filters themselves.
    """
    variances = wide * kernel * kernel + wide * kernel
    return frames * kernel * kernel + kernel * wide + variances + places * kernel * wide


@pytest.mark.parametrize("kind", KINDS)
def test_those_of_convolutions_on_the_waveform_are_those_of_the_formula(kind: str) -> None:
    make, others = KINDS[kind]
    convolutions = COMPACT if kind == "compact" else CONVOLUTIONS
    total = prod(stride for _, _, stride in convolutions)
    places, channels, weights, products = -(-SAMPLES // total) * total, 1, 0, 0
    for index, (wide, kernel, stride) in enumerate(convolutions):
        places //= stride
        weights += wide * channels * kernel
        if index == 0 and kind in {"group norm", "compact"}:
            products += normalised(places, (SAMPLES - kernel) // stride + 1, wide, kernel)
        else:
            products += convolved(places, channels, wide, kernel, stride)
        channels = wide
    assert counts(make) == (weights + others, products)


@pytest.mark.parametrize("gated", [False, True])
def test_those_of_convolutions_on_log_mel_are_those_of_the_formula(gated: bool) -> None:
    mels = (SAMPLES - 400) // 160 + 1
    first, second = (mels + 4 - 5) // 2 + 1, ((mels + 4 - 5) // 2 + 2 - 3) // 2 + 1
    twice = 2 if gated else 1
    norms = 0 if gated else 2 * (12 + 16)
    weights = twice * (MELS * 12 * 5 + 12 + 12 * 16 * 3 + 16) + norms
    products = mels * BINS * MELS + twice * (first * MELS * 12 * 5 + second * 12 * 16 * 3)
    assert counts(lambda: LogMelConv(((12, 5, 2), (16, 3, 2)), num_mels=MELS, gated=gated)) == (weights, products)


def test_log_mel_frames_have_no_weights_and_the_products_of_their_filters() -> None:
    mels = (SAMPLES - 400) // 160 + 1
    assert counts(lambda: LogMel(num_mels=MELS, stack=2)) == (0, mels * BINS * MELS)
