import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from ossicle.ops import selective_scan as scans
from ossicle.ops.associative_scan import linear_scan, selective_scan_by_pairs
from ossicle.ops.selective_scan import selective_scan
from ossicle.ops.selective_scan_run import SEGMENT
from tests.ops.apart import compiled, here, interpreted


def problem(
    rows: int, frames: int, channels: int, states: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, ...]:
    """Frames, steps, rates, ways in and out that ask for gradients."""
    torch.manual_seed(frames)
    x, step = torch.randn(2, rows, frames, channels, dtype=dtype)
    rates = -torch.rand(channels, states, dtype=dtype) * 3
    enter, leave = torch.randn(2, rows, frames, states, dtype=dtype)
    return tuple(tensor.requires_grad_() for tensor in (x.clone(), step.abs(), rates, enter.clone(), leave.clone()))


def by_hand(x: torch.Tensor, step: torch.Tensor, rates: torch.Tensor, enter: torch.Tensor, leave: torch.Tensor) -> list:
    """The equations a number at a time."""
    out = []
    for b in range(x.shape[0]):
        for e in range(x.shape[2]):
            state = [0.0] * rates.shape[1]
            for t in range(x.shape[1]):
                for n in range(rates.shape[1]):
                    kept = math.exp(float(step[b, t, e] * rates[e, n])) * state[n]
                    state[n] = kept + float(step[b, t, e] * enter[b, t, n] * x[b, t, e])
                out.append(sum(float(leave[b, t, n]) * state[n] for n in range(len(state))))
    return out


@pytest.mark.parametrize("segment", [1, 3, 256])
@hypothesis.given(frames=st.integers(1, 20))
@hypothesis.settings(max_examples=8, deadline=None)
def test_a_selective_scan_equals_the_equations_a_number_at_a_time(segment: int, frames: int) -> None:
    tensors = problem(2, frames, 2, 3)
    expected = torch.tensor(by_hand(*(tensor.detach() for tensor in tensors)), dtype=torch.float64)
    for said_BTE in (selective_scan(*tensors), selective_scan_by_pairs(*tensors, segment=segment)):
        torch.testing.assert_close(said_BTE.mT.flatten(), expected, atol=1e-11, rtol=1e-11)


# More than one segment and block of channels, one left over, and as many as fit.
@pytest.mark.parametrize(
    ("rows", "frames", "channels", "states"),
    [(2, 2 * SEGMENT + 5, 70, 3), (1, SEGMENT, 64, 16), (3, 1, 1, 1), (2, 9, 65, 5), (0, 9, 4, 2)],
)
def test_the_operation_and_its_gradients_equal_those_of_autograd(
    rows: int, frames: int, channels: int, states: int
) -> None:
    assert scans._serves("cpu", torch.float64)
    tensors = problem(rows, frames, channels, states)
    expected, got = selective_scan_by_pairs(*tensors), selective_scan(*tensors)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    grad = torch.randn_like(expected)
    pairs = zip(torch.autograd.grad(got, tensors, grad), torch.autograd.grad(expected, tensors, grad), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_float32_follows_float64_over_many_frames() -> None:
    tensors = problem(2, 700, 40, 8)
    expected = selective_scan(*tensors)
    single = [tensor.detach().float().requires_grad_() for tensor in tensors]
    got = selective_scan(*single)
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-4)
    grad = torch.randn_like(expected)
    ours_too = torch.autograd.grad(got, single, grad.float())
    for ours, theirs in zip(ours_too, torch.autograd.grad(expected, tensors, grad), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-4)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    tensors = problem(3, 50, 130, 4, torch.float32)
    threads = torch.get_num_threads()
    try:
        outputs = []
        for number in (1, 2, 8):
            torch.set_num_threads(number)
            said_BTE = selective_scan(*tensors)
            outputs.append((said_BTE, *torch.autograd.grad(said_BTE.square().sum(), tensors)))
    finally:
        torch.set_num_threads(threads)
    for output in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(output, outputs[0], strict=True))


def test_a_nan_goes_on_to_the_frames_after_it_and_to_no_other() -> None:
    tensors = problem(2, 40, 3, 2, torch.float32)
    tensors[0].data[0, 35, 1] = math.nan
    said_BTE = selective_scan(*tensors).detach()
    assert said_BTE[0, 35:, 1].isnan().all()
    said_BTE[0, 35:, 1] = 0
    assert said_BTE.isfinite().all()


def test_it_computes_in_float32_under_autocast_and_of_half_inputs() -> None:
    tensors = problem(2, 20, 4, 3, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(selective_scan(*tensors), selective_scan(*tensors))
        assert selective_scan(*(tensor.bfloat16() for tensor in tensors)).dtype == torch.float32


@hypothesis.given(frames=st.integers(1, 70))
@hypothesis.settings(max_examples=20, deadline=None)
def test_a_linear_scan_and_its_gradients_equal_a_loop(frames: int) -> None:
    torch.manual_seed(frames)
    kept, entered, grad = torch.randn(3, 2, frames, 3, dtype=torch.float64)
    kept, entered = kept.clone().requires_grad_(), entered.clone().requires_grad_()
    state, states = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(frames):
        state = kept[:, t] * state + entered[:, t]
        states.append(state)
    expected, got = torch.stack(states, 1), linear_scan(kept, entered)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
    ours_too = torch.autograd.grad(got, (kept, entered), grad)
    pairs = zip(ours_too, torch.autograd.grad(expected, (kept, entered), grad), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("segment", [2, 256])
def test_gradients_pass_gradcheck_in_segments_and_whole(segment: int) -> None:
    assert torch.autograd.gradcheck(lambda *x: selective_scan_by_pairs(*x, segment=segment), problem(1, 5, 2, 2))
    assert torch.autograd.gradcheck(selective_scan, problem(1, 5, 2, 2))


def test_by_pairs_no_state_is_kept_but_those_between_segments() -> None:
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        selective_scan_by_pairs(*problem(2, 64, 3, 16), segment=16)
    assert sum(kept) < 2 * 64 * 3 * 16  # all states once


def test_torch_accepts_the_scans_as_operations() -> None:
    kept, entered = (torch.randn(2, 5, 3, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.ossicle.linear_scan.default, (kept, entered))
    torch.library.opcheck(torch.ops.ossicle.selective_scan.default, problem(2, 40, 3, 2, torch.float32))


def test_its_products_are_counted_there_and_back() -> None:
    with torch.device("meta"):
        x, step = torch.empty(2, 50, 6, requires_grad=True), torch.empty(2, 50, 6)
        rates, enter, leave = torch.empty(6, 4), torch.empty(2, 50, 4), torch.empty(2, 50, 4)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        selective_scan(x, step, rates, enter, leave).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 50 * 6 * 4)


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_it_runs_in_torch_and_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    tensors = problem(1, 7, 3, 2)
    for _ in range(2):
        torch.testing.assert_close(selective_scan(*tensors), selective_scan_by_pairs(*tensors), rtol=0, atol=0)
    assert caplog.text.count("runs as an associative scan in torch: cannot be built (no C++ compiler") == 1


# The reference is autograd through the scan in torch, in float64.
CASES = """
import torch
from ossicle.ops import selective_scan_triton as kernels
from ossicle.ops.associative_scan import selective_scan_by_pairs
from ossicle.ops.selective_scan_run import SEGMENT, Inputs
from tests.ops.test_selective_scan import problem

def check(device):
    for shape in ((1, SEGMENT + 2, 33, 3), (2, 2, 32, 16)):
        tensors = problem(*shape)
        expected = selective_scan_by_pairs(*tensors)
        grad = torch.randn_like(expected)
        grads = torch.autograd.grad(expected, tensors, grad)
        inputs = Inputs(*(tensor.detach().float().to(device) for tensor in tensors))
        said, starts = kernels.forward(inputs)
        got = kernels.backward(grad.float().to(device), inputs, starts)
        for ours, theirs in zip((said, *got), (expected, *grads), strict=True):
            torch.testing.assert_close(
                ours.double().cpu(), theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-4, check_stride=False
            )
"""


def test_the_triton_kernels_equal_float64_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    assert interpreted(CASES + "\ncheck('cpu')\nprint('equal')") == "equal"


def test_the_triton_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    ours = pytest.importorskip("ossicle.ops.selective_scan_triton")
    known = {"CHANNELS": 1536, "STATES": 16, "BLOCK_E": ours.BLOCK_E, "BLOCK_N": 16, "SEGMENT": SEGMENT}
    for kernel in (ours._forward_kernel, ours._backward_kernel):
        assert compiled(kernel, known, {"frames": "i32"}, "*fp32", **ours.LAUNCH)["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_triton_kernels_equal_float64_on_a_gpu() -> None:
    here(CASES + "\ncheck('cuda')")
