import math

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from ossicle.ops.relative_position import attend_biased, by_pair, deberta_buckets, distances, wavlm_buckets
from tests.mixer.loops import array, softmax_means


def inputs(*shape: int) -> list[Tensor]:
    torch.manual_seed(sum(shape))
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(320, 800), (320, 1280), (32, 128), (4, 2)])
def test_buckets_equal_those_of_transformers_wavlm(num_buckets: int, max_distance: int) -> None:
    theirs = WavLMAttention(8, 2, num_buckets=num_buckets, max_distance=max_distance)
    distance_R = distances(2000, torch.device("cpu"))
    ours_R = wavlm_buckets(distance_R, num_buckets, max_distance)
    assert torch.equal(ours_R, theirs._relative_positions_bucket(distance_R))
    assert ours_R.min() == 0
    assert ours_R.max() == num_buckets - 1


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(256, 512), (256, 1000), (32, 128), (4, 16), (4, 12)])
def test_buckets_equal_those_of_transformers_deberta_and_ends_are_clamped(num_buckets: int, max_distance: int) -> None:
    distance_R = distances(2000, torch.device("cpu"))
    theirs_R = make_log_bucket_position(distance_R, num_buckets, max_distance).long() + num_buckets
    ours_R = deberta_buckets(distance_R, num_buckets, max_distance)
    assert torch.equal(ours_R, theirs_R.clamp(0, 2 * num_buckets - 1))
    middle = distance_R.abs() <= num_buckets // 2
    assert torch.equal(ours_R[middle], distance_R[middle] + num_buckets)


@hypothesis.given(frames=st.integers(1, 9), data=st.data())
def test_what_belongs_to_a_distance_is_laid_out_by_query_and_key(frames: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, frames - 1))
    stop = data.draw(st.integers(start + 1, frames))
    distance_R2 = torch.stack([distances(frames, torch.device("cpu")), 100 + distances(frames, torch.device("cpu"))], 1)
    expected = [[[key - query + add for key in range(frames)] for query in range(start, stop)] for add in (0, 100)]
    assert by_pair(distance_R2, frames, start, stop).tolist() == expected


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [1, 3, 7, 100])
def test_it_equals_a_loop_in_float64_however_queries_are_cut_into_blocks(
    queries: int, masked: bool, scale: float | None
) -> None:
    q, k, v = inputs(2, 7, 3, 4)
    bias_BHTT = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    valid_BT = torch.arange(7) < torch.tensor([[7], [4]]) if masked else None
    budget = 2 * 3 * 7 * queries

    def bias(start: int, stop: int) -> Tensor:
        return bias_BHTT[:, :, start:stop]

    out = attend_biased(q, k, v, bias, valid_BT=valid_BT, scale=scale, budget=budget)
    factor = 1 / math.sqrt(4) if scale is None else scale
    for row in range(2):
        q_THK, k_THK, v_THK = (array(x[row]) for x in (q, k, v))
        bias_HTT, length = array(bias_BHTT[row]), 4 if masked and row else 7
        expected = softmax_means(
            lambda h, i, j: q_THK[i, h] @ k_THK[j, h] * factor + bias_HTT[h, i, j],  # noqa: B023  called at once
            v_THK,
            lambda _, j: j < length,  # noqa: B023
        )
        np.testing.assert_allclose(array(out[row])[:length], expected[:length], atol=1e-12)


def test_gradients_through_blocks_equal_those_of_the_whole() -> None:
    q, k, v = inputs(2, 7, 3, 4)
    bias_BHTT = torch.randn(2, 3, 7, 7, dtype=torch.float64, requires_grad=True)
    grads = []
    for budget in (2**20, 2 * 3 * 7 * 3):
        out = attend_biased(q, k, v, lambda start, stop: bias_BHTT[:, :, start:stop], budget=budget)
        grads.append(torch.autograd.grad(out.square().sum(), (q, k, v, bias_BHTT)))
    for whole, blocks in zip(*grads, strict=True):
        torch.testing.assert_close(whole, blocks)


def test_no_block_of_the_bias_is_larger_than_the_budget() -> None:
    q, k, v = inputs(2, 100, 3, 4)
    asked = []

    def bias(start: int, stop: int) -> Tensor:
        asked.append((start, stop))
        return torch.zeros(2, 3, stop - start, 100, dtype=torch.float64)

    attend_biased(q, k, v, bias, budget=5000)
    assert asked[0] == (0, 8)
    assert asked[-1][1] == 100
    assert max(stop - start for start, stop in asked) * 2 * 3 * 100 <= 5000


def test_dropout_in_blocks_is_the_same_when_they_are_run_again_in_the_backward_pass() -> None:
    q, k, _ = inputs(1, 8, 2, 4)
    # with values of one, what comes out is the share that was kept: its gradient towards them is the dropped weights
    v = torch.ones(1, 8, 2, 4, dtype=torch.float64, requires_grad=True)
    out = attend_biased(q, k, v, lambda start, stop: torch.zeros(1, 2, stop - start, 8), dropout=0.5, budget=2 * 8 * 3)
    (grad,) = torch.autograd.grad(out.sum(), v)
    torch.testing.assert_close((grad * v).sum(), out.sum())


def test_blocks_are_one_graph_too() -> None:
    q, k, v = (x.detach() for x in inputs(1, 12, 2, 4))
    score_RH = torch.randn(23, 2, dtype=torch.float64)

    def call(q: Tensor, k: Tensor, v: Tensor, score_RH: Tensor) -> Tensor:
        return attend_biased(q, k, v, lambda start, stop: by_pair(score_RH, 12, start, stop)[None], budget=2 * 12 * 5)

    compiled = torch.compile(call, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(q, k, v, score_RH), call(q, k, v, score_RH))
