"""Parameters and multiply-accumulates of encoders against formulas by hand; the Conformer has its own beside it."""

import pytest
import torch

from ossicle.meter.flops import count_macs
from tests.encoder.test_contract import encoder

DIM, FFN, GATE, LAYERS, POSITION, GROUPS, KERNEL, FRAMES = 24, 48, 48, 3, 8, 4, 5, 20
ATTENTION = 4 * (DIM * DIM + DIM)
NORM = 2 * DIM


def counts(name: str, **more: object) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of one row."""
    with torch.device("meta"):
        built = encoder(name, **more).eval()
    x_BTD = torch.empty(1, FRAMES, built.input_dim, device="meta")
    return sum(parameter.numel() for parameter in built.parameters()), count_macs(lambda: built(x_BTD))


def placing(dim: int = DIM) -> int:
    """Weights of a position convolution, the norms of their taps, biases."""
    return dim * dim // GROUPS * POSITION + POSITION + dim


def placed(frames: int = FRAMES, dim: int = DIM) -> int:
    """Products of a position convolution: an even kernel makes one frame more, which is cut off."""
    return (frames + 1) * dim * dim // GROUPS * POSITION


def attending(frames: int = FRAMES, dim: int = DIM) -> int:
    """Products of attention."""
    return frames * 4 * dim * dim + 2 * frames * frames * dim


def block(dim: int = DIM, ffn: int = FFN) -> int:
    """Parameters of a Transformer block."""
    return 4 * (dim * dim + dim) + 2 * dim * ffn + ffn + dim + 2 * 2 * dim


def products(frames: int = FRAMES, dim: int = DIM, ffn: int = FFN) -> int:
    """Products of a Transformer block."""
    return attending(frames, dim) + frames * 2 * dim * ffn


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformers_are_those_of_the_formula(norm_first: bool) -> None:
    expected = LAYERS * block() + placing() + NORM, LAYERS * products() + placed()
    assert counts("transformer", norm_first=norm_first) == expected


def test_the_largest_elastic_one_counts_as_the_transformer_that_it_is() -> None:
    assert counts("elastic") == (LAYERS * block() + placing() + NORM, LAYERS * products() + placed())


def test_a_branchformers_are_those_of_the_formula() -> None:
    half = GATE // 2
    gating = DIM * GATE + GATE + 2 * half + half * KERNEL + half + half * DIM + DIM
    parameters = ATTENTION + gating + 2 * NORM + 2 * DIM * DIM + DIM
    made = attending() + FRAMES * (DIM * GATE + half * KERNEL + half * DIM + 2 * DIM * DIM)
    assert counts("branchformer") == (LAYERS * parameters + placing() + NORM, LAYERS * made + placed())


def test_a_squeezed_ones_are_those_of_the_formula() -> None:
    half = FRAMES // 2
    parameters = LAYERS * block() + placing() + NORM + DIM * 2 * DIM + 2 * DIM
    assert counts("squeezed", squeeze=2) == (parameters, LAYERS * products(half) + placed(half) + half * DIM * 2 * DIM)


def test_a_hierarchical_ones_are_those_of_the_formula() -> None:
    half, sixth = FRAMES // 2, 4  # the last frame of the lowest rate stands for one frame alone
    joints = 4 * (DIM * DIM + DIM)  # two down, two up
    made = 2 * products() + 2 * products(half) + products(sixth) + 2 * (half + sixth) * DIM * DIM
    assert counts("hierarchical") == (5 * block() + placing() + NORM + joints, made + placed())


def test_those_of_mr_huberts_are_those_of_the_formula() -> None:
    # ten frames at half the rate become four, and these twelve again: two are cut off after the group
    adapters = 4 * (2 * DIM * DIM + 2 * NORM)
    adapted = (FRAMES + 10) + (10 + 4) + (4 + 12) + (10 + FRAMES)
    made = sum(products(frames) for frames in (FRAMES, 10, 4, 12, FRAMES)) + adapted * DIM * DIM
    assert counts("mr_hubert") == (5 * (block() + NORM) + placing() + adapters, made + placed())


def test_a_progressive_ones_are_those_of_the_formula() -> None:
    half, quarter = FRAMES // 2, FRAMES // 4
    shorten = (20 * 12 * 5 + 12 + 2 * 12) + (12 * 16 + 16 + 2 * 16) + (16 * 24 * 3 + 24 + 2 * 24)
    blocks = block(16, 24) + 2 * block(24, 32)
    parameters = shorten + placing(16) + placing(24) + 2 * 16 + 2 * 24 + blocks
    made = half * (12 * 20 * 5 + 16 * 12) + quarter * 24 * 16 * 3 + placed(half, 16) + placed(quarter, 24)
    assert counts("progressive") == (parameters, made + products(half, 16, 24) + 2 * products(quarter, 24, 32))


def test_a_convolutional_ones_are_those_of_the_formula() -> None:
    parameters = DIM * DIM * KERNEL + DIM + NORM
    assert counts("convolutional") == (LAYERS * parameters, LAYERS * FRAMES * DIM * DIM * KERNEL)


def test_a_recurrent_ones_are_those_of_the_formula() -> None:
    matrices = 2 * 3 * DIM * DIM  # of the frame and of what is remembered, for three gates
    assert counts("recurrent") == (LAYERS * (matrices + 2 * 3 * DIM), LAYERS * FRAMES * matrices)
