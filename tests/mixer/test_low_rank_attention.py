import math

import numpy as np
import pytest
import torch
from linformer import LinformerSelfAttention
from scipy import stats
from torch import nn

from ossicle.core.errors import ConfigError
from ossicle.mixer.low_rank_attention import LowRankAttention, SegmentPooling
from tests.mixer.loops import array, dependence, macs, mapped, noisy, num_parameters

DIM, HEADS, SEGMENTS = 24, 3, 4


def weights_of(pooling: SegmentPooling, frames: int) -> np.ndarray:
    """The matrix E of an utterance's length: numpy's interpolation at the middles of frames, and a softmax."""
    logits_SG = array(pooling.logits)
    points = logits_SG.shape[1]
    middles = (np.arange(frames) + 0.5) / frames * points - 0.5
    read_ST = np.stack([np.interp(middles, np.arange(points), row) for row in logits_SG])
    shares_ST = np.exp(read_ST - read_ST.max(1, keepdims=True))
    return shares_ST / shares_ST.sum(1, keepdims=True)


@pytest.mark.parametrize("frames", [1, 3, 16, 37])
def test_it_equals_the_papers_formula_with_matrices_of_the_utterances_length(frames: int) -> None:
    mixer = noisy(LowRankAttention(DIM, HEADS, num_segments=SEGMENTS)).double()
    x_TD = torch.randn(frames, DIM, dtype=torch.float64)
    q_THK, k_THK, v_THK = (mapped(linear, array(x_TD), HEADS) for linear in (mixer.query, mixer.key, mixer.value))
    e_ST, f_ST = weights_of(mixer.pool_keys, frames), weights_of(mixer.pool_values, frames)
    mixed_THK = np.zeros_like(v_THK)
    for i, h in np.ndindex(frames, HEADS):
        scores = (e_ST @ k_THK[:, h]) @ q_THK[i, h] / math.sqrt(DIM // HEADS)
        shares = np.exp(scores - scores.max())
        mixed_THK[i, h] = shares / shares.sum() @ (f_ST @ v_THK[:, h])
    expected = mapped(mixer.out, mixed_THK.reshape(frames, DIM))[:, 0]
    np.testing.assert_allclose(array(mixer(x_TD[None]))[0], expected, atol=2e-5)  # places are in float32


@pytest.mark.parametrize("frames", [3, 37])
def test_it_equals_the_linformer_package_with_matrices_of_the_utterances_length(frames: int) -> None:
    mixer = noisy(LowRankAttention(DIM, HEADS, num_segments=SEGMENTS)).double()
    theirs = LinformerSelfAttention(DIM, frames, k=SEGMENTS, heads=HEADS).double().eval()
    pools = ((theirs.proj_k, mixer.pool_keys), (theirs.proj_v, mixer.pool_values))
    maps = ((theirs.to_q, mixer.query), (theirs.to_k, mixer.key), (theirs.to_v, mixer.value))
    with torch.no_grad():
        for matrix_TS, pooling in pools:
            matrix_TS.copy_(torch.from_numpy(weights_of(pooling, frames).T))
        for linear, ours in maps:
            linear.weight.copy_(ours.weight)
            ours.bias.zero_()  # theirs have none
        theirs.to_out.load_state_dict(mixer.out.state_dict())
    x_BTD = torch.randn(2, frames, DIM, dtype=torch.float64)
    torch.testing.assert_close(mixer(x_BTD), theirs(x_BTD), atol=2e-5, rtol=2e-5)  # places are in float32


def test_segments_start_as_bells_side_by_side() -> None:
    shares_ST = weights_of(SegmentPooling(SEGMENTS), 400)
    means = shares_ST @ ((np.arange(400) + 0.5) / 400)
    # one deviation is half a segment; what would lie before the first frame or after the last is cut off
    centres, deviation = (np.arange(SEGMENTS) + 0.5) / SEGMENTS, 0.5 / SEGMENTS
    cut = stats.truncnorm((0 - centres) / deviation, (1 - centres) / deviation, centres, deviation)
    np.testing.assert_allclose(means, cut.mean(), atol=0.003)
    np.testing.assert_array_equal(shares_ST.argmax(1) // 100, range(SEGMENTS))


def test_every_frame_depends_on_every_frame() -> None:
    assert dependence(noisy(LowRankAttention(DIM, HEADS, num_segments=SEGMENTS)), 20, DIM).all()


def test_its_gradients_pass_gradcheck() -> None:
    mixer = noisy(LowRankAttention(4, num_heads=2, num_segments=2)).double()
    x_BTD = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_the_formula() -> None:
    dim, rows, segments = 768, 2, 128
    with torch.device("meta"):
        mixer: nn.Module = LowRankAttention(dim)
    assert num_parameters(mixer) == 4 * (dim * dim + dim) + 2 * segments * 4 * segments
    for frames in (100, 1000):
        # two maps of frames and two of segments, two poolings, scores and means
        maps, pools, scores = 2 * (frames + segments) * dim**2, 2 * segments * frames * dim, 2 * frames * segments * dim
        assert macs(lambda: LowRankAttention(dim), rows, frames, dim) == rows * (maps + pools + scores)


def test_no_segment_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_segments=0"):
        LowRankAttention(DIM, HEADS, num_segments=0)
