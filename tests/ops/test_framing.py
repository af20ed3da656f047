import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.ops.framing import count_frames, frame_mask, require_one_frame, slice_frames


@hypothesis.given(
    lengths=st.lists(st.integers(0, 2_000), min_size=1, max_size=5),
    kernel=st.integers(1, 500),
    stride=st.integers(1, 400),
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_counts_on_tensors_equal_the_clocks_own(lengths: list[int], kernel: int, stride: int) -> None:
    clock = FrameClock(kernel, stride)
    counts = count_frames(torch.tensor(lengths), clock).tolist()
    assert counts == [clock.num_frames(length) for length in lengths]
    mask = frame_mask(torch.tensor(lengths), clock, clock.num_frames(2_000))
    assert mask.sum(1).tolist() == counts


@hypothesis.given(samples=st.integers(1, 300), kernel=st.integers(1, 50), stride=st.integers(1, 50))
@hypothesis.settings(max_examples=50, deadline=None)
def test_slices_are_the_clocks_frames(samples: int, kernel: int, stride: int) -> None:
    clock = FrameClock(kernel, stride)
    frames = slice_frames(torch.arange(samples)[None].float(), kernel, stride)
    assert frames.shape == (1, clock.num_frames(samples), kernel)
    if frames.shape[1]:
        assert frames[0, -1, 0] == (frames.shape[1] - 1) * stride


def test_audio_shorter_than_a_frame_is_refused_with_both_lengths() -> None:
    require_one_frame(400, FrameClock(400, 320))
    with pytest.raises(DataError, match="399 samples are fewer than the 400"):
        require_one_frame(399, FrameClock(400, 320))
