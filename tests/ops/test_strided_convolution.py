import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional

from ossicle.core.errors import ConfigError
from ossicle.ops.strided_convolution import strided_convolution


@hypothesis.given(kernel=st.integers(1, 9), stride=st.integers(1, 4), places=st.integers(3, 9), rows=st.integers(1, 3))
@hypothesis.settings(max_examples=60, deadline=None)
def test_it_equals_torchs_convolution_with_its_gradients(kernel: int, stride: int, places: int, rows: int) -> None:
    hypothesis.assume(kernel >= stride)
    frames = places * stride
    hypothesis.assume(frames >= kernel)
    torch.manual_seed(kernel * 100 + stride)
    x_BTC = torch.randn(rows, frames, 3, dtype=torch.float64, requires_grad=True)
    weight_OCK = torch.randn(5, 3, kernel, dtype=torch.float64, requires_grad=True)
    real = (frames - kernel) // stride + 1
    probe = torch.randn(rows, real, 5, dtype=torch.float64)
    out = strided_convolution(x_BTC, weight_OCK, stride)
    assert out.shape == (rows, places, 5)
    fast = torch.autograd.grad((out[:, :real] * probe).sum(), (x_BTC, weight_OCK))
    expected = functional.conv1d(x_BTC.transpose(1, 2), weight_OCK, stride=stride).transpose(1, 2)
    plain = torch.autograd.grad((expected * probe).sum(), (x_BTC, weight_OCK))
    torch.testing.assert_close(out[:, :real], expected)
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_under_autocast_it_multiplies_in_bfloat16() -> None:
    x_BTC, weight_OCK = torch.randn(1, 8, 4), torch.randn(4, 4, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = strided_convolution(x_BTC, weight_OCK, 2)
    assert out.dtype == torch.bfloat16
    out[:, :3].float().sum().backward()
    assert weight_OCK.grad is not None
    assert weight_OCK.grad.dtype == torch.float32


@pytest.mark.parametrize(("frames", "kernel"), [(7, 3), (8, 1)])
def test_frames_or_kernels_that_do_not_suit_the_stride_are_refused(frames: int, kernel: int) -> None:
    with pytest.raises(ConfigError, match="stride of 2"):
        strided_convolution(torch.randn(1, frames, 2), torch.randn(2, 2, kernel), 2)


def test_it_traces_as_one_graph() -> None:
    compiled = torch.compile(strided_convolution, backend="aot_eager", fullgraph=True)
    x_BTC, weight_OCK = torch.randn(2, 8, 4, requires_grad=True), torch.randn(4, 4, 3, requires_grad=True)
    torch.testing.assert_close(compiled(x_BTC, weight_OCK, 2)[:, :3], strided_convolution(x_BTC, weight_OCK, 2)[:, :3])
    compiled(x_BTC, weight_OCK, 2)[:, :3].sum().backward()
    assert x_BTC.grad is not None
