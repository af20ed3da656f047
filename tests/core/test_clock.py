import torch
from hypothesis import given
from hypothesis import strategies as st

from ossicle.core.clock import FrameClock

LAYER = st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(0, 4), st.integers(0, 4))
WAVE = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))


def composed(layers: list[tuple[int, int, int, int]]) -> FrameClock:
    clock = FrameClock()
    for kernel, stride, left, right in layers:
        clock = clock.then(kernel, stride, left, right)
    return clock


def test_the_clock_of_wav2vec_2_sees_25_ms_every_20_ms() -> None:
    clock = composed([(k, s, 0, 0) for k, s in WAVE])
    assert (clock.kernel_samples, clock.stride_samples, clock.offset_samples) == (400, 320, 0)
    assert clock.num_frames(16_000) == 49
    assert clock.frames_per_s == 50


@given(st.lists(LAYER, min_size=1, max_size=4), st.integers(0, 400))
def test_composed_clocks_count_frames_as_the_convolutions_do(
    layers: list[tuple[int, int, int, int]], samples: int
) -> None:
    frames = samples
    for kernel, stride, left, right in layers:
        padded = frames + left + right
        if padded < kernel:
            return  # torch refuses such an input; the clock's answer for it is not defined layer by layer
        frames = torch.nn.functional.conv1d(torch.zeros(1, 1, padded), torch.zeros(1, 1, kernel), stride=stride).shape[
            -1
        ]
    assert composed(layers).num_frames(samples) == frames


@given(st.lists(LAYER, min_size=1, max_size=3), st.integers(1, 30))
def test_the_fewest_samples_of_a_number_of_frames_are_the_fewest(
    layers: list[tuple[int, int, int, int]], frames: int
) -> None:
    clock = composed(layers)
    samples = clock.num_samples(frames)
    if samples > 0:
        assert clock.num_frames(samples) >= frames
        assert clock.num_frames(samples - 1) < frames


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), min_size=1, max_size=3), st.integers(0, 5))
def test_a_frames_field_is_where_its_gradient_reaches(layers: list[tuple[int, int]], frame: int) -> None:
    clock = composed([(k, s, 0, 0) for k, s in layers])
    samples = clock.num_samples(frame + 1)
    wave = torch.zeros(1, 1, samples, requires_grad=True)
    out = wave
    for kernel, stride in layers:
        out = torch.nn.functional.conv1d(out, torch.ones(1, 1, kernel), stride=stride)
    out[0, 0, frame].backward()
    assert wave.grad is not None
    touched = wave.grad[0, 0].nonzero()[:, 0]
    start = clock.offset_samples + frame * clock.stride_samples
    assert (int(touched[0]), int(touched[-1])) == (start, start + clock.kernel_samples - 1) or any(
        s > k for k, s in layers
    )
    assert clock.centre_samples(frame) == start + (clock.kernel_samples - 1) / 2


def test_clocks_agree_only_on_one_rate_and_moment() -> None:
    wave = FrameClock(400, 320)
    assert wave.agrees_with(FrameClock(560, 320))
    assert not wave.agrees_with(FrameClock(400, 160))
    assert not wave.agrees_with(FrameClock(400, 320, offset_samples=400))
    assert not wave.agrees_with(FrameClock(400, 320, rate_hz=8000))
