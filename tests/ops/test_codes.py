import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.ops.codes import count_codes, count_groups, one_hot


@given(num=st.integers(1, 30), size=st.integers(0, 200), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_counts_equal_bincount(num: int, size: int, seed: int) -> None:
    codes = torch.randint(0, num, (size,), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(count_codes(codes, num), torch.bincount(codes, minlength=num).float())


def test_counts_of_weighted_codes_are_sums_of_their_weights() -> None:
    codes, weights = torch.tensor([[2, 0, 2], [1, 2, 0]]), torch.tensor([[1.0, 0.0, 0.5], [3.0, 0.0, 1.0]])
    assert count_codes(codes, 4, weights).tolist() == [1.0, 3.0, 1.5, 0.0]


@given(num=st.integers(1, 30), groups=st.integers(1, 5), size=st.integers(0, 50), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_each_codebook_is_counted_by_itself(num: int, groups: int, size: int, seed: int) -> None:
    codes_PG = torch.randint(0, num, (size, groups), generator=torch.Generator().manual_seed(seed))
    wanted = torch.stack([torch.bincount(codes, minlength=num).float() for codes in codes_PG.T])
    assert torch.equal(count_groups(codes_PG, num), wanted)


def test_one_hot_vectors_are_torchs() -> None:
    codes = torch.randint(0, 7, (3, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(one_hot(codes, torch.empty(3, 4, 7)), torch.nn.functional.one_hot(codes, 7).float())


def test_counting_reads_no_value_on_the_host() -> None:
    with FakeTensorMode():
        assert count_groups(torch.zeros(3, 2, dtype=torch.int64), 9).shape == (2, 9)
        assert count_codes(torch.zeros(3, 4, dtype=torch.int64), 9).shape == (9,)
