import random

import pytest
import torch
from scipy import stats

from ossicle.ops.augmentation_features import random_spans

CPU = torch.device("cpu")


def draw(rows: int, size: int, num: float, longest: int, seed: int = 0, *, fixed: bool = False) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return random_spans(rows, size, num=num, longest=longest, fixed=fixed, device=CPU, generator=source)


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


@pytest.mark.parametrize(("size", "num", "longest"), [(128, 2.56, 20), (200, 5, 20), (99, 0.4, 12)])
def test_spans_of_one_length_hide_as_much_as_a_loop_that_rounds_by_chance(size: int, num: float, longest: int) -> None:
    random.seed(1)
    counts = []
    for _ in range(20_000):
        hidden: set[int] = set()
        for _ in range(int(num + random.random())):
            start = random.randint(0, size - longest)
            hidden |= set(range(start, start + longest))
        counts.append(len(hidden))
    hidden_BT = draw(20_000, size, num, longest, fixed=True)
    assert stats.ks_2samp(hidden_BT.sum(1).numpy(), counts).pvalue > 1e-3
    assert int(hidden_BT.sum(1)[hidden_BT.any(1)].min()) >= longest


def test_a_span_that_is_there_by_chance_has_the_length_and_start_of_the_others() -> None:
    hidden = draw(40_000, 30, 0.25, 7, fixed=True)
    there = hidden.any(1)
    assert abs(float(there.float().mean()) - 0.25) < 0.01
    assert hidden[there].sum(1).unique().tolist() == [7]
    assert stats.chisquare(torch.bincount(hidden[there].int().argmax(1), minlength=24).numpy()).pvalue > 1e-3


def test_a_whole_number_of_spans_takes_no_draw_more_than_its_spans() -> None:
    source = torch.Generator().manual_seed(0)
    random_spans(3, 20, num=2.0, longest=5, device=CPU, generator=source)
    other = torch.Generator().manual_seed(0)
    torch.rand(2, 3, 2, generator=other)
    assert torch.equal(source.get_state(), other.get_state())
