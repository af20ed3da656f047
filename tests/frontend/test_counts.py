"""Parameters and multiply-accumulates of frontends against formulas by hand."""

from collections.abc import Callable

import pytest
import torch

from ossicle.frontend.base import Frontend
from ossicle.frontend.logmel import LogMel
from ossicle.frontend.logmel_conv import LogMelConv
from ossicle.frontend.wave import Wave, WaveLayerNorm, WaveReLU
from ossicle.meter.flops import count_macs

CONVOLUTIONS = ((8, 10, 5), (12, 3, 2), (16, 2, 2))
SAMPLES, MELS, BINS = 4000, 20, 257
KINDS: dict[str, tuple[Callable[[], Frontend], int]] = {
    # beside the weights: a norm of the first layer; a norm and a bias of every layer; a norm of every layer
    "group norm": (lambda: Wave(CONVOLUTIONS), 2 * 8),
    "layer norms": (lambda: WaveLayerNorm(CONVOLUTIONS, conv_bias=True), 3 * (8 + 12 + 16)),
    "ReLU": (lambda: WaveReLU(CONVOLUTIONS), 2 * (8 + 12 + 16)),
}


def counts(make: Callable[[], Frontend]) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of one row."""
    with torch.device("meta"):
        frontend = make().eval()
    waveform_BS = torch.empty(1, SAMPLES, device="meta")
    return sum(p.numel() for p in frontend.parameters()), count_macs(lambda: frontend(waveform_BS))


@pytest.mark.parametrize("kind", KINDS)
def test_those_of_convolutions_on_the_waveform_are_those_of_the_formula(kind: str) -> None:
    make, others = KINDS[kind]
    frames, channels, weights, products = SAMPLES, 1, 0, 0
    for wide, kernel, stride in CONVOLUTIONS:
        frames = (frames - kernel) // stride + 1
        weights += wide * channels * kernel
        products += frames * wide * channels * kernel
        channels = wide
    counted, made = counts(make)
    assert counted == weights + others
    # frames are laid in strides, whose last is filled; the group norm also multiplies windows by each other
    assert made == pytest.approx(products, rel=0.01) if kind != "group norm" else made > products


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
