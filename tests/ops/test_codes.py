import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.ops.codes import count_codes


@given(num=st.integers(1, 30), size=st.integers(0, 200), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_counts_equal_bincount(num: int, size: int, seed: int) -> None:
    codes = torch.randint(0, num, (size,), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(count_codes(codes, num), torch.bincount(codes, minlength=num).float())


def test_counting_reads_no_value_on_the_host() -> None:
    with FakeTensorMode():
        assert count_codes(torch.zeros(3, 4, dtype=torch.int64), 9).shape == (9,)
