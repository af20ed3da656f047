import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForPreTraining, Wav2Vec2GumbelVectorQuantizer

from ossicle.ops.losses import contrastive_logits, diversity_loss, feature_penalty, frame_deviation
from ossicle.ops.negatives import sample_negatives


@given(
    rows=st.integers(1, 3),
    masked=st.integers(2, 12),
    num=st.integers(1, 20),
    codes=st.integers(1, 6),
    temperature=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_logits_equal_transformers_and_equal_codes_are_no_negatives(
    *, rows: int, masked: int, num: int, codes: int, temperature: float, seed: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    context = torch.randn(rows, masked, 8, generator=source)
    book = torch.randn(codes, 8, generator=source)
    chosen = torch.randint(0, codes, (rows, masked), generator=source)
    quantised = book[chosen]
    negatives = sample_negatives(rows, masked, num=num, generator=source)
    ours = contrastive_logits(context, quantised, chosen[..., None], negatives, temperature=temperature)

    picked = quantised[torch.arange(rows)[:, None, None], negatives].permute(2, 0, 1, 3)
    theirs = Wav2Vec2ForPreTraining.compute_contrastive_logits(quantised[None], picked, context, temperature)
    theirs[1:][(quantised == picked).all(-1)] = -math.inf
    torch.testing.assert_close(ours, theirs.permute(1, 2, 0), atol=1e-5, rtol=1e-5)


def test_a_frame_whose_negatives_all_equal_it_has_no_loss_and_a_finite_gradient() -> None:
    context = torch.randn(1, 3, 4, requires_grad=True)
    codes = torch.zeros(1, 3, 2, dtype=torch.int64)
    negatives = sample_negatives(1, 3, num=5, generator=torch.Generator().manual_seed(0))
    logits = contrastive_logits(context, torch.ones(1, 3, 4), codes, negatives, temperature=0.1)
    loss = functional.cross_entropy(logits.flatten(0, 1), torch.zeros(3, dtype=torch.int64), reduction="sum")
    loss.backward()
    assert float(loss.detach()) == 0
    assert context.grad is not None
    assert torch.equal(context.grad, torch.zeros_like(context))


@given(groups=st.integers(1, 4), codes=st.integers(1, 40), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_diversity_equals_transformers_perplexity(groups: int, codes: int, seed: int) -> None:
    soft = torch.randn(9, groups, codes, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    perplexity = Wav2Vec2GumbelVectorQuantizer._compute_perplexity(soft)
    total = groups * codes
    assert float(diversity_loss(soft.mean(0))) == pytest.approx(float((total - perplexity) / total), abs=1e-5)


def test_diversity_is_zero_when_every_code_is_used_alike_and_large_when_one_is() -> None:
    assert float(diversity_loss(torch.full((2, 320), 1 / 320))) == pytest.approx(0, abs=1e-5)
    one = torch.zeros(2, 320)
    one[:, 3] = 1
    assert float(diversity_loss(one)) == pytest.approx(1 - 2 / 640)


def test_diversity_has_a_finite_gradient_where_a_probability_is_zero() -> None:
    probabilities = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    diversity_loss(probabilities).backward()
    assert probabilities.grad is not None
    assert probabilities.grad.isfinite().all()


def test_penalty_is_a_float32_mean_square_whatever_the_input_is() -> None:
    features = torch.full((2, 700, 64), 300.0, dtype=torch.bfloat16)
    assert float(feature_penalty(features)) == pytest.approx(90_000)
    assert feature_penalty(features).dtype == torch.float32


def test_deviation_is_zero_for_equal_frames_and_counts_no_difference_between_rows() -> None:
    assert float(frame_deviation(torch.randn(3, 1, 8).expand(3, 20, 8))) == pytest.approx(0, abs=1e-6)
    x = torch.randn(3, 20, 8, dtype=torch.float64)
    assert float(frame_deviation(x)) == pytest.approx(float(x.std(1, correction=0).mean()), abs=1e-6)
