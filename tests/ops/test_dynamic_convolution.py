import hypothesis
import torch
from hypothesis import strategies as st
from torch.nn import functional

from ossicle.ops.dynamic_convolution import dynamic_convolution


@hypothesis.given(frames=st.integers(1, 12), heads=st.sampled_from([1, 2, 6]), taps=st.sampled_from([1, 3, 7]))
@hypothesis.settings(max_examples=25, deadline=None)
def test_it_equals_a_float64_loop_over_frames_and_channels(frames: int, heads: int, taps: int) -> None:
    torch.manual_seed(frames)
    x_BTD = torch.randn(2, frames, 6, dtype=torch.float64)
    weights = torch.randn(2, frames, heads, taps, dtype=torch.float64)
    expected = torch.zeros_like(x_BTD)
    for b in range(2):
        for t in range(frames):
            for d in range(6):
                for tap in range(taps):
                    source = t + tap - taps // 2
                    if 0 <= source < frames:
                        expected[b, t, d] += weights[b, t, d * heads // 6, tap] * x_BTD[b, source, d]
    torch.testing.assert_close(dynamic_convolution(x_BTD, weights), expected, atol=1e-12, rtol=1e-12)


def test_the_same_kernel_at_every_frame_makes_torchs_depthwise_convolution() -> None:
    x_BTD = torch.randn(2, 20, 6, dtype=torch.float64)
    kernels = torch.randn(6, 5, dtype=torch.float64)
    expected = functional.conv1d(x_BTD.transpose(1, 2), kernels[:, None], padding=2, groups=6).transpose(1, 2)
    torch.testing.assert_close(dynamic_convolution(x_BTD, kernels.expand(2, 20, 6, 5)), expected)


def test_its_gradients_pass_gradcheck() -> None:
    x_BTD = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dynamic_convolution, (x_BTD, weights))
