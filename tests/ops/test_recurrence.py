import logging
import math
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from ossicle.meter.flops import count_macs
from ossicle.ops import native, recurrence_cpu, recurrence_loop
from ossicle.ops.recurrence import light_gru, light_gru_reference, reverse_frames
from tests.ops.apart import compiled, interpreted

EPSILONS = [None, 1e-5]


def problem(
    rows: int, frames: int, units: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates and recurrent weights that ask for gradients."""
    torch.manual_seed(rows + 10 * frames + 100 * units)
    gates = torch.randn(2, rows, frames, 2 * units, dtype=dtype, requires_grad=True)
    weights = torch.randn(2, 2 * units, units, dtype=dtype) / math.sqrt(units)
    return gates, weights.requires_grad_()


def by_hand(gates: torch.Tensor, weights: torch.Tensor, epsilon: float | None) -> torch.Tensor:
    """The papers' equations, a number at a time."""
    gates, weights = gates.detach(), weights.detach()
    directions, rows, frames, wide = gates.shape
    units = wide // 2
    out = torch.zeros(directions, rows, frames, units, dtype=torch.float64)
    for r in range(directions):
        for b in range(rows):
            state = [0.0] * units
            for t in range(frames):
                products = [sum(float(weights[r, i, j]) * state[j] for j in range(units)) for i in range(wide)]
                if epsilon is not None:
                    mean = sum(products) / wide
                    variance = sum((p - mean) ** 2 for p in products) / wide
                    products = [(p - mean) / math.sqrt(variance + epsilon) for p in products]
                sums = [float(gates[r, b, t, i]) + products[i] for i in range(wide)]
                update = [1 / (1 + math.exp(-sums[i])) for i in range(units)]
                candidate = [max(0.0, sums[units + i]) for i in range(units)]
                state = [update[i] * state[i] + (1 - update[i]) * candidate[i] for i in range(units)]
                out[r, b, t] = torch.tensor(state, dtype=torch.float64)
    return out


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_states_are_those_of_the_equations_a_number_at_a_time(epsilon: float | None) -> None:
    gates, weights = problem(2, 6, 5)
    expected = by_hand(gates, weights, epsilon)
    for states in (light_gru(gates, weights, epsilon), light_gru_reference(gates, weights, epsilon)):
        torch.testing.assert_close(states, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("path", ["compiled", "loop"])
@hypothesis.given(rows=st.integers(1, 19), frames=st.integers(1, 9), units=st.sampled_from([1, 3, 8, 16, 33]))
@hypothesis.settings(max_examples=12, deadline=None)
def test_states_and_gradients_equal_those_of_autograd(
    path: str, epsilon: float | None, rows: int, frames: int, units: int
) -> None:
    gates, weights = problem(rows, frames, units)
    expected = light_gru_reference(gates, weights, epsilon)
    grad = torch.randn_like(expected)
    of_gates, of_weights = torch.autograd.grad(expected, (gates, weights), grad)
    module = recurrence_cpu if path == "compiled" else recurrence_loop
    if path == "compiled" and recurrence_cpu.CODE.refusal is not None:
        pytest.skip(recurrence_cpu.CODE.refusal)
    run = module.forward(gates.detach(), weights.detach(), epsilon)
    torch.testing.assert_close(run.states_RBTU, expected.detach(), atol=1e-10, rtol=1e-10)
    got, of_products = module.backward(grad, run, weights.detach(), epsilon)
    torch.testing.assert_close(got, of_gates, atol=1e-9, rtol=1e-8)
    before = recurrence_loop.shifted(run.states_RBTU)
    got = torch.einsum("rbtw,rbtu->rwu", of_products, before)
    torch.testing.assert_close(got, of_weights, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_float32_follows_float64_over_many_frames(epsilon: float | None) -> None:
    gates, weights = problem(3, 300, 48)
    with torch.no_grad():
        single = light_gru(gates.float(), weights.float() / 2, epsilon)
        torch.testing.assert_close(single.double(), light_gru(gates, weights / 2, epsilon), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_its_gradients_pass_gradcheck(epsilon: float | None) -> None:
    gates, weights = problem(2, 4, 3)
    assert torch.autograd.gradcheck(lambda g, w: light_gru(g, w, epsilon), (gates, weights))


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_torch_accepts_the_operation_as_its_own(epsilon: float | None) -> None:
    torch.library.opcheck(torch.ops.ossicle.light_gru.default, (*problem(2, 4, 3, torch.float32), epsilon))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    gates, weights = problem(19, 7, 20, torch.float32)
    threads = torch.get_num_threads()
    try:
        outputs = []
        for number in (1, 2, 3, 8):
            torch.set_num_threads(number)
            states = light_gru(gates, weights, 1e-5)
            outputs.append((states, *torch.autograd.grad(states.square().sum(), (gates,))))
    finally:
        torch.set_num_threads(threads)
    for output in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(output, outputs[0], strict=True))


def test_states_pass_a_nan_on_rather_than_hide_it() -> None:
    gates, weights = problem(1, 5, 4, torch.float32)
    gates.data[0, 0, 2, 6] = math.nan
    states = light_gru(gates, weights)
    assert states[0, 0, :2].isfinite().all()
    assert states[0, 0, 2:].isnan().any(-1).all()


def test_it_computes_in_float32_under_autocast_and_of_half_inputs() -> None:
    gates, weights = problem(2, 5, 4, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = light_gru(gates, weights)
        (got,) = torch.autograd.grad(states.sum(), weights)
    (expected,) = torch.autograd.grad(light_gru_reference(gates, weights).sum(), weights)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert light_gru(gates.bfloat16(), weights).dtype == torch.float32


def test_its_products_are_counted_there_and_back() -> None:
    with torch.device("meta"):
        gates, weights = torch.empty(2, 3, 50, 14, requires_grad=True), torch.empty(2, 14, 7)
        assert count_macs(lambda: light_gru(gates, weights)) == 2 * 3 * 50 * 14 * 7
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        light_gru(gates, weights).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 3 * 50 * 14 * 7)


@hypothesis.given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4))
@hypothesis.settings(max_examples=20, deadline=None)
def test_each_row_is_reversed_from_its_own_end(lengths: list[int]) -> None:
    x_BTD = torch.randn(len(lengths), max(lengths), 3)
    valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    reversed_BTD = reverse_frames(x_BTD, valid_BT)
    for row, length in enumerate(lengths):
        assert torch.equal(reversed_BTD[row, :length], x_BTD[row, :length].flip(0))
    assert torch.equal(reverse_frames(reversed_BTD, valid_BT), x_BTD)
    assert torch.equal(reverse_frames(x_BTD), x_BTD.flip(1))


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_it_runs_as_a_loop_and_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    gates, weights = problem(2, 4, 3)
    with caplog.at_level(logging.INFO, logger="ossicle.ops.recurrence"):
        states = light_gru(gates, weights)
        light_gru(gates, weights)
    torch.testing.assert_close(states, light_gru_reference(gates, weights))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "loop over frames in torch: cannot be built (no C++ compiler" in caplog.text


def test_a_source_that_does_not_compile_is_refused_with_the_compilers_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main( {")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    refusal = native.Source(broken).refusal
    if refusal is None or "no C++ compiler" in refusal:
        pytest.skip("no compiler to refuse")
    assert "broken.cpp" in refusal
    assert not list((tmp_path / "ossicle").iterdir())


INTERPRETED = """
import torch
from ossicle.ops import recurrence_loop as loop, recurrence_triton as triton
torch.manual_seed(0)
for epsilon in (None, 1e-5):
    for rows, frames, units in ((3, 4, 5), (17, 3, 16), (2, 4, 70)):
        gates, grad = torch.randn(2, rows, frames, 2 * units), torch.randn(2, rows, frames, units)
        weights = torch.randn(2, 2 * units, units) / units**0.5
        exact = [value.double() for value in (gates, weights)]
        run, expected = triton.forward(gates, weights, epsilon), loop.forward(*exact, epsilon)
        back = triton.backward(grad, run, weights, epsilon)
        wanted = loop.backward(grad.double(), expected, exact[1], epsilon)
        for ours, theirs in zip((*run, *back), (*expected, *wanted), strict=True):
            # norms make a step's gradient large beside its neighbours', and rounding is that of what is summed
            scale = max(1.0, *theirs.abs().flatten().tolist()) if theirs.numel() else 1.0
            torch.testing.assert_close(ours.double(), theirs, atol=2e-6 * scale, rtol=0)
print("equal")
"""


def test_the_triton_kernels_equal_the_loop_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    assert interpreted(INTERPRETED) == "equal"


def test_the_triton_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    ours = pytest.importorskip("ossicle.ops.recurrence_triton")
    known = {"UNITS": 48, "NORMALISED": True, **ours._tiles(48)}
    kinds = {"rows": "i32", "frames": "i32", "epsilon": "fp32"}
    for kernel in (ours._forward_kernel, ours._backward_kernel):
        assert compiled(kernel, known, kinds, "*fp32", num_warps=8)["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_triton_kernels_equal_float64_on_a_gpu(epsilon: float | None) -> None:
    gates, weights = problem(19, 40, 96)
    expected = light_gru_reference(gates, weights, epsilon)
    grad = torch.randn_like(expected)
    on_gpu = [x.detach().float().cuda().requires_grad_() for x in (gates, weights)]
    states = light_gru(on_gpu[0], on_gpu[1], epsilon)
    torch.testing.assert_close(states.double().cpu(), expected, atol=1e-4, rtol=1e-4)
    got = torch.autograd.grad(states, on_gpu, grad.float().cuda())
    for ours, theirs in zip(got, torch.autograd.grad(expected, (gates, weights), grad), strict=True):
        torch.testing.assert_close(ours.double().cpu(), theirs, atol=1e-3, rtol=1e-3)
