import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from ossicle.ops.selective_scan import linear_scan, selective_scan


def problem(rows: int, frames: int, channels: int, states: int) -> tuple[torch.Tensor, ...]:
    """Frames, steps, rates, ways in and out, in float64, that ask for gradients."""
    torch.manual_seed(frames)
    x, step = torch.randn(2, rows, frames, channels, dtype=torch.float64)
    rates = -torch.rand(channels, states, dtype=torch.float64) * 3
    enter, leave = torch.randn(2, rows, frames, states, dtype=torch.float64)
    return tuple(tensor.requires_grad_() for tensor in (x, step.abs(), rates, enter, leave))


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
    got_BET = selective_scan(*tensors, segment=segment).mT
    expected = torch.tensor(by_hand(*(tensor.detach() for tensor in tensors)), dtype=torch.float64)
    torch.testing.assert_close(got_BET.flatten(), expected, atol=1e-11, rtol=1e-11)


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
def test_its_gradients_pass_gradcheck_in_segments_and_whole(segment: int) -> None:
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, segment=segment), problem(1, 5, 2, 2))


def test_torch_accepts_the_scan_as_an_operation() -> None:
    kept, entered = (torch.randn(2, 5, 3, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.ossicle.linear_scan.default, (kept, entered))
