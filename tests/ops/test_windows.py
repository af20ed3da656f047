import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from ossicle.ops.windows import activated_windows, activated_windows_reference, normalised_filters
from tests.ops.apart import compiled, here, interpreted


def reference(
    waveform_BS: torch.Tensor, weight_CK: torch.Tensor, scale_C: torch.Tensor, shift_C: torch.Tensor, stride: int
) -> torch.Tensor:
    out_BCT = functional.conv1d(waveform_BS[:, None], weight_CK[:, None], stride=stride)
    return functional.gelu(functional.group_norm(out_BCT, len(weight_CK), scale_C, shift_C, eps=1e-5)).transpose(1, 2)


def ours(
    waveform_BS: torch.Tensor,
    *parameters: torch.Tensor,
    num_frames: int,
    stride: int = 5,
    valid_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    filters_BKC, bias_BC = normalised_filters(
        waveform_BS, *parameters, stride=stride, num_frames=num_frames, epsilon=1e-5, valid_BT=valid_BT
    )
    return activated_windows(waveform_BS, filters_BKC, bias_BC, stride)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_equals_torchs_convolution_group_norm_and_gelu_with_their_gradients(dtype: torch.dtype) -> None:
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
            ours(waveform_BS, *leaves, num_frames=frames)[:, :frames]
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
    parameters = torch.randn(4, 10), torch.ones(4), torch.zeros(4)
    frames = (200 - 10) // 5 + 1
    valid_BT = torch.stack([torch.ones(63, dtype=torch.bool), torch.arange(63) < frames])
    both = ours(waveform_BS, *parameters, num_frames=63, valid_BT=valid_BT)
    alone = ours(waveform_BS[1:, :200], *parameters, num_frames=frames)
    torch.testing.assert_close(both[1, :frames], alone[0, :frames], atol=1e-5, rtol=1e-5)


def test_a_silent_row_gives_gelu_of_the_shift_and_no_nan() -> None:
    weight_CK = torch.randn(4, 10, requires_grad=True)
    out = ours(torch.zeros(1, 320), weight_CK, torch.ones(4), torch.full((4,), 0.5), num_frames=63)
    torch.testing.assert_close(out, functional.gelu(torch.full_like(out, 0.5)))
    out.sum().backward()
    assert weight_CK.grad is not None
    assert weight_CK.grad.isfinite().all()


CASES = """
import torch
from ossicle.ops import windows_triton as kernels
from ossicle.ops.windows import activated_windows_reference

def check(device, dtype, tolerance):
    torch.manual_seed(0)
    # one tile and less, more tiles than a program sums, channels and taps that fill no tile, 16 taps and a bias of 17
    for rows, samples, stride, taps, channels in ((2, 35, 5, 10, 7), (1, 2 * 2048 * 3, 2, 3, 20), (3, 400, 4, 16, 130)):
        waveform = torch.randn(rows, samples, device=device)
        filters = torch.randn(rows, taps, channels, device=device).to(dtype)
        bias = torch.randn(rows, channels, device=device).to(dtype)
        grad = torch.randn(rows, samples // stride, channels, device=device).to(dtype)
        # the exact product of what the kernels multiply
        leaves = [x.double().requires_grad_() for x in (filters, bias)]
        heard = waveform.to(dtype).double()
        wanted = activated_windows_reference(heard, *leaves, stride)
        wanted_back = torch.autograd.grad(wanted, leaves, grad.double())
        found = kernels.forward(waveform, filters, bias, stride)
        found_back = kernels.backward(grad, waveform, filters, bias, stride)
        for one, other in zip((found, *found_back), (wanted, *wanted_back), strict=True):
            assert one.dtype == dtype
            scale = other.abs().max().item()
            torch.testing.assert_close(one.double(), other, atol=tolerance * scale, rtol=0)
"""


def test_the_triton_kernels_equal_float64_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    code = CASES + "\ncheck('cpu', torch.float32, 1e-5)\nprint('equal')"
    assert interpreted(code) == "equal"


@pytest.mark.parametrize("stored", ["*bf16", "*fp32"])
def test_the_triton_kernels_compile_for_a_gpu_that_is_not_here(stored: str) -> None:
    ours = pytest.importorskip("ossicle.ops.windows_triton")
    known = {"STRIDE": 5, "TAPS": 10, "CHANNELS": 512, "TILES": ours.TILES_PER_PROGRAM, **ours.tiles(10, 512)}
    known["BLOCK_T"] = 32
    warps = known.pop("num_warps")
    kinds = {"waveform": "*fp32", "sums": "*fp32", "samples": "i32", "frames": "i32"}
    for kernel in (ours._forward_kernel, ours._backward_kernel):
        assert compiled(kernel, known, kinds, stored, num_warps=warps)["cubin"]


def test_the_operators_shapes_and_work_are_known_without_a_gpu() -> None:
    with torch.device("meta"):
        waveform = torch.empty(2, 640)
        filters, bias = torch.empty(2, 10, 8, requires_grad=True), torch.empty(2, 8, requires_grad=True)
    counts = []
    for call in (activated_windows_reference, torch.ops.ossicle.activated_windows):
        with FlopCounterMode(display=False) as counter:
            out = call(waveform, filters, bias, 5)
        assert out.shape == (2, 128, 8)
        counts.append(counter.get_total_flops())
    assert counts == [2 * 2 * 128 * 10 * 8] * 2
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert filters.grad is not None
    assert filters.grad.shape == filters.shape
    assert counter.get_total_flops() == 2 * counts[0]  # the product again, and the gradient


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_the_triton_kernels_equal_float64_on_a_gpu(dtype: str, tolerance: float) -> None:
    here(CASES + f"\ncheck('cuda', torch.{dtype}, {tolerance})")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_layer_runs_as_the_kernel_and_keeps_nothing_of_frames_and_channels() -> None:
    waveform = torch.randn(2, 32_000, device="cuda")
    filters = torch.randn(2, 10, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    before = torch.cuda.memory_allocated()
    out = activated_windows(waveform, filters, bias, 5)
    kept = torch.cuda.memory_allocated() - before - out.numel() * out.element_size()
    assert kept < out.numel() * out.element_size() / 10
    torch.testing.assert_close(out, activated_windows_reference(waveform, filters, bias, 5), atol=0.05, rtol=0.02)
