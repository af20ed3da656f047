import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from ossicle.ops.masking import gather_frames, mask_indices, masked_flags, num_masked, unmasked_indices


def draw(rows: int, frames: int, p: float = 0.08, length: int = 10, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return mask_indices(rows, frames, start_probability=p, length=length, generator=source)


@given(
    rows=st.integers(1, 5),
    frames=st.integers(1, 120),
    p=st.floats(0.001, 1.0),
    length=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_every_row_has_exactly_the_stated_count_of_distinct_rising_frames(
    rows: int, frames: int, p: float, length: int, seed: int
) -> None:
    indices = draw(rows, frames, p, length, seed)
    expected = max(1, round(frames * (1 - (1 - p) ** length)))
    assert indices.dtype == torch.int64
    assert indices.shape == (rows, expected)
    assert indices.min() >= 0
    assert indices.max() < frames
    assert (indices.diff(dim=1) > 0).all()


def test_one_generator_draws_one_mask_and_another_draws_another() -> None:
    assert torch.equal(draw(4, 200, seed=5), draw(4, 200, seed=5))
    assert not torch.equal(draw(4, 200, seed=5), draw(4, 200, seed=6))
    rows = draw(4, 200, seed=5)
    assert not torch.equal(rows[0], rows[1])


def test_coverage_follows_the_published_rates() -> None:
    assert num_masked(10_000, start_probability=0.065, length=10) == 4894  # "approximately 49 %", arXiv 2006.11477
    assert num_masked(10_000, start_probability=0.08, length=10) == 5656
    assert num_masked(100, start_probability=1.0, length=1) == 100


@pytest.mark.parametrize(("p", "length"), [(0.08, 10), (0.065, 10), (0.15, 4)])
def test_coverage_is_close_to_that_of_transformers_overlapping_spans(p: float, length: int) -> None:
    theirs = _compute_mask_indices((400, 750), mask_prob=p * length, mask_length=length).mean()
    assert num_masked(750, start_probability=p, length=length) / 750 == pytest.approx(theirs, abs=0.01)


def test_interior_frames_are_masked_equally_often() -> None:
    frames, length, rows = 120, 6, 6000
    rates = masked_flags(draw(rows, frames, 0.08, length), frames).float().mean(0)
    interior = rates[2 * length : -2 * length]
    middle = float(interior.mean())
    assert float(interior.std()) < 2.5 * (middle * (1 - middle) / rows) ** 0.5  # frames of one row are correlated
    thirds = interior[: len(interior) // 3].mean() - interior[-(len(interior) // 3) :].mean()
    assert abs(float(thirds)) < 0.02


def test_both_ends_are_masked_less_often_and_alike() -> None:
    rates = masked_flags(draw(6000, 120, 0.08, 6), 120).float().mean(0)
    assert rates[0] < 0.5 * rates[60]
    torch.testing.assert_close(rates[:6], rates[-6:].flip(0), atol=0.05, rtol=0)


def runs(flags: torch.Tensor) -> list[int]:
    found, current = [], 0
    for flag in [*flags.tolist(), False]:
        if flag:
            current += 1
        elif current:
            found.append(current)
            current = 0
    return found


def test_masks_are_unions_of_whole_spans_but_for_the_last_one() -> None:
    length = 10
    short = [sum(run < length for run in runs(row)) for row in masked_flags(draw(200, 300, 0.05, length), 300)]
    assert max(short) <= 1
    assert sum(short) > 0


def test_spans_of_one_frame_are_uniform_draws_without_replacement() -> None:
    flags = masked_flags(draw(4000, 20, 0.25, 1), 20)
    counts = flags.sum(0).numpy()
    assert counts.sum() == 4000 * 5
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 10, 11])
def test_rows_shorter_than_a_span_are_masked_in_part_and_in_different_places(frames: int) -> None:
    indices = draw(200, frames, 0.08, 10)
    assert indices.shape == (200, max(1, round(frames * (1 - 0.92**10))))
    if frames > 1:
        assert len(indices.unique(dim=0)) == frames - indices.shape[1] + 1


@pytest.mark.parametrize(("frames", "p", "length"), [(0, 0.1, 10), (10, 0.0, 10), (10, 1.1, 10), (10, 0.1, 0)])
def test_arguments_out_of_range_are_refused(frames: int, p: float, length: int) -> None:
    with pytest.raises(ValueError, match="cannot mask"):
        num_masked(frames, start_probability=p, length=length)


def test_masked_and_unmasked_frames_partition_the_row() -> None:
    masked = draw(3, 50)
    unmasked = unmasked_indices(masked, 50)
    assert unmasked.shape == (3, 50 - masked.shape[1])
    assert (unmasked.diff(dim=1) > 0).all()
    assert torch.equal(torch.cat((masked, unmasked), 1).sort(1).values, torch.arange(50).expand(3, -1))
    assert torch.equal(masked_flags(masked, 50).sum(1), torch.full((3,), masked.shape[1]))


def test_gathered_frames_and_their_gradients_equal_boolean_indexing() -> None:
    x = torch.randn(3, 40, 5, dtype=torch.float64, requires_grad=True)
    masked = draw(3, 40)
    weight = torch.randn(masked.numel(), 5, dtype=torch.float64)
    ours = gather_frames(x, masked)
    (ours.flatten(0, 1) * weight).sum().backward()
    gradient = x.grad
    x.grad = None
    theirs = x[masked_flags(masked, 40)]
    (theirs * weight).sum().backward()
    assert torch.equal(ours.flatten(0, 1), theirs)
    assert torch.equal(gradient, x.grad)


def test_no_step_reads_a_value_on_the_host() -> None:
    with FakeTensorMode():
        source = torch.Generator().manual_seed(0)
        masked = mask_indices(4, 99, start_probability=0.08, length=10, generator=source)
        unmasked = unmasked_indices(masked, 99)
        frames = gather_frames(torch.randn(4, 99, 8), unmasked)
        assert frames.shape == (4, 99 - masked.shape[1], 8)
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            masked_flags(masked, 99).nonzero()  # what such a read would raise
