import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.ops.negatives import sample_negatives


def draw(rows: int, masked: int, num: int, seed: int = 0) -> torch.Tensor:
    return sample_negatives(rows, masked, num=num, generator=torch.Generator().manual_seed(seed))


@given(rows=st.integers(1, 5), masked=st.integers(2, 60), num=st.integers(1, 120), seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_no_negative_is_its_own_positive_and_all_are_masked_frames_of_the_row(
    rows: int, masked: int, num: int, seed: int
) -> None:
    negatives = draw(rows, masked, num, seed)
    assert negatives.shape == (rows, masked, num)
    assert negatives.dtype == torch.int64
    assert (negatives != torch.arange(masked)[:, None]).all()
    assert negatives.min() >= 0
    assert negatives.max() < masked


def test_every_other_frame_is_equally_likely() -> None:
    masked = 7
    negatives = draw(20, masked, 2000)
    for own in range(masked):
        counts = torch.bincount(negatives[:, own].flatten(), minlength=masked)
        others = torch.cat((counts[:own], counts[own + 1 :]))
        assert counts[own] == 0
        assert stats.chisquare(others.numpy()).pvalue > 1e-3


def test_one_generator_draws_the_same_negatives_and_another_draws_others() -> None:
    assert torch.equal(draw(2, 30, 10, seed=1), draw(2, 30, 10, seed=1))
    assert not torch.equal(draw(2, 30, 10, seed=1), draw(2, 30, 10, seed=2))


def test_two_masked_frames_are_each_others_only_negative() -> None:
    assert torch.equal(draw(1, 2, 3)[0], torch.tensor([[1, 1, 1], [0, 0, 0]]))


def test_a_single_masked_frame_has_no_negative() -> None:
    with pytest.raises(ValueError, match="no other"):
        draw(2, 1, 5)


def test_no_step_reads_a_value_on_the_host() -> None:
    with FakeTensorMode():
        negatives = sample_negatives(2, 30, num=100, generator=torch.Generator().manual_seed(0))
        assert negatives.shape == (2, 30, 100)
