import pytest
import torch
from torch.nn import functional

from ossicle.ops.windows import normalised_windows


def reference(
    waveform_BS: torch.Tensor, weight_CK: torch.Tensor, scale_C: torch.Tensor, shift_C: torch.Tensor, stride: int
) -> torch.Tensor:
    out_BCT = functional.conv1d(waveform_BS[:, None], weight_CK[:, None], stride=stride)
    return functional.group_norm(out_BCT, len(weight_CK), scale_C, shift_C, eps=1e-5).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_equals_torchs_convolution_and_group_norm_with_their_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    waveform_BS = 0.3 + torch.randn(2, 640, dtype=dtype)  # a mean that is not zero
    weight_CK, scale_C, shift_C = (
        torch.randn(7, 10, dtype=dtype),
        torch.randn(7, dtype=dtype),
        torch.randn(7, dtype=dtype),
    )
    gradients = []
    frames = (640 - 10) // 5 + 1
    probe = torch.randn(2, frames, 7, dtype=dtype)
    for fast in (True, False):
        leaves = [value.clone().requires_grad_() for value in (weight_CK, scale_C, shift_C)]
        out = (
            normalised_windows(waveform_BS, *leaves, stride=5, num_frames=frames, epsilon=1e-5)[:, :frames]
            if fast
            else reference(waveform_BS, *leaves, stride=5)
        )
        (out * probe).sum().backward()
        gradients.append([out, *(leaf.grad for leaf in leaves)])
    tolerance = {"atol": 1e-9, "rtol": 1e-9} if dtype == torch.float64 else {"atol": 2e-4, "rtol": 2e-5}
    for fast, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, **tolerance)


def test_statistics_are_those_of_real_frames() -> None:
    waveform_BS = torch.randn(2, 320)
    weight_CK, scale_C, shift_C = torch.randn(4, 10), torch.ones(4), torch.zeros(4)
    frames = (200 - 10) // 5 + 1
    valid_BT = torch.stack([torch.ones(63, dtype=torch.bool), torch.arange(63) < frames])
    settings = {"stride": 5, "epsilon": 1e-5}
    both = normalised_windows(waveform_BS, weight_CK, scale_C, shift_C, num_frames=63, valid_BT=valid_BT, **settings)
    alone = normalised_windows(waveform_BS[1:, :200], weight_CK, scale_C, shift_C, num_frames=frames, **settings)
    torch.testing.assert_close(both[1, :frames], alone[0, :frames], atol=1e-5, rtol=1e-5)


def test_a_silent_row_gives_the_shift_and_no_nan() -> None:
    weight_CK = torch.randn(4, 10, requires_grad=True)
    out = normalised_windows(
        torch.zeros(1, 320), weight_CK, torch.ones(4), torch.full((4,), 0.5), stride=5, num_frames=63, epsilon=1e-5
    )
    assert torch.equal(out, torch.full_like(out, 0.5))
    out.sum().backward()
    assert weight_CK.grad is not None
    assert weight_CK.grad.isfinite().all()
