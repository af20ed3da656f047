import random

import pytest
import torch
from scipy import stats

from ossicle.ops.augmentation_features import random_spans

CPU = torch.device("cpu")


def draw(rows: int, size: int, num: int, longest: int, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return random_spans(rows, size, num=num, longest=longest, device=CPU, generator=source)


def test_one_span_is_unbroken_with_length_and_start_as_defined() -> None:
    hidden = draw(40_000, 30, 1, 7)
    lengths = hidden.sum(1)
    assert stats.chisquare(torch.bincount(lengths, minlength=8).numpy()).pvalue > 1e-3  # uniform on 0..7
    jumps = hidden.int().diff(dim=1, prepend=torch.zeros(40_000, 1, dtype=torch.int32))
    assert int((jumps == 1).sum(1).max()) == 1
    for length in (1, 4, 7):
        starts = hidden[lengths == length].int().argmax(1)
        counts = torch.bincount(starts, minlength=30 - length + 1)
        assert len(counts) == 30 - length + 1
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("size", "num", "longest"), [(80, 2, 27), (99, 2, 50), (20, 5, 6)])
def test_as_much_is_hidden_as_by_the_papers_definition(size: int, num: int, longest: int) -> None:
    random.seed(0)
    counts = []
    for _ in range(20_000):
        hidden: set[int] = set()
        for _ in range(num):
            length = random.randint(0, longest)
            start = random.randint(0, size - length)
            hidden |= set(range(start, start + length))
        counts.append(len(hidden))
    ours = draw(20_000, size, num, longest).sum(1).numpy()
    assert stats.ks_2samp(ours, counts).pvalue > 1e-3


def test_a_span_never_exceeds_the_row_and_none_hides_nothing() -> None:
    assert draw(2_000, 4, 1, 50).sum(1).unique().tolist() == [0, 1, 2, 3, 4]
    assert not draw(5, 10, 0, 3).any()
    assert not draw(5, 10, 3, 0).any()
