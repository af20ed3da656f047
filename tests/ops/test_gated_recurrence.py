import pytest
import torch
from torch import nn

from ossicle.core.errors import ConfigError
from ossicle.meter.flops import count_macs
from ossicle.ops.gated_recurrence import GATES, LONG, WEIGHTS, gated_recurrence

LAYERS = {"GRU": nn.GRU, "LSTM": nn.LSTM}


def layer(kind: str, *, bidirectional: bool, dtype: torch.dtype = torch.float32) -> nn.GRU | nn.LSTM:
    torch.manual_seed(3)
    return LAYERS[kind](6, 4, batch_first=True, bidirectional=bidirectional, dtype=dtype)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", GATES)
def test_it_is_torchs_layer(kind: str, bidirectional: bool) -> None:
    theirs = layer(kind, bidirectional=bidirectional)
    x_BTD = torch.randn(3, 7, 6)
    assert torch.equal(gated_recurrence(kind, x_BTD, list(theirs.parameters())), theirs(x_BTD)[0])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", GATES)
def test_compiled_it_is_one_operation_with_the_same_gradients(kind: str, bidirectional: bool) -> None:
    weights = list(layer(kind, bidirectional=bidirectional).parameters())
    x_BTD = torch.randn(3, 7, 6, requires_grad=True)
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compile(gated_recurrence, backend=keep, fullgraph=True)(kind, x_BTD, weights)
    calls = [node for node in graphs[0].graph.nodes if "gated_recurrence" in str(node.target)]
    assert len(graphs) == len(calls) == 1
    torch._dynamo.reset()
    compiled = torch.compile(gated_recurrence, backend="aot_eager", fullgraph=True)(kind, x_BTD, weights)
    eager = gated_recurrence(kind, x_BTD, weights)
    torch.testing.assert_close(compiled, eager)
    grad = torch.randn_like(eager)
    inputs = (x_BTD, *weights)
    for ours, theirs in zip(
        torch.autograd.grad(compiled, inputs, grad), torch.autograd.grad(eager, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("frames", [5, 8, 11])
def test_long_rows_in_segments_are_torchs_gru_in_states_and_gradients(
    frames: int, bidirectional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = layer("GRU", bidirectional=bidirectional, dtype=torch.float64)
    weights = list(theirs.parameters())
    x_BTD = torch.randn(3, frames, 6, dtype=torch.float64, requires_grad=True)
    expected = theirs(x_BTD)[0]
    monkeypatch.setattr("ossicle.ops.gated_recurrence.LONG", 4)
    monkeypatch.setattr("ossicle.ops.gated_recurrence.SEGMENT", 4)
    got = gated_recurrence("GRU", x_BTD, weights)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    grad = torch.randn_like(got)
    torch._dynamo.reset()
    compiled = torch.compile(gated_recurrence, backend="aot_eager", fullgraph=True)("GRU", x_BTD, weights)
    wanted = torch.autograd.grad(expected, (x_BTD, *weights), grad)
    for one in (got, compiled):
        assert one.grad_fn is not None
        for ours, its in zip(torch.autograd.grad(one, (x_BTD, *weights), grad), wanted, strict=True):
            torch.testing.assert_close(ours, its, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_long_row_of_an_lstm_is_torchs_own(bidirectional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = layer("LSTM", bidirectional=bidirectional)
    monkeypatch.setattr("ossicle.ops.gated_recurrence.LONG", 4)
    monkeypatch.setattr("ossicle.ops.gated_recurrence.SEGMENT", 4)
    x_BTD = torch.randn(3, 11, 6)
    assert torch.equal(gated_recurrence("LSTM", x_BTD, list(theirs.parameters())), theirs(x_BTD)[0])


def _kept(frames: int) -> int:
    """Numbers a frame that autograd keeps of a GRU of six units each way."""
    weights = list(layer("GRU", bidirectional=True).parameters())
    kept: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        gated_recurrence("GRU", torch.randn(1, frames, 6, requires_grad=True), weights)
    return sum(kept) // frames


def test_a_long_rows_way_back_keeps_what_torch_keeps_of_a_segment_alone() -> None:
    assert _kept(LONG + 1) < 3 * 6
    assert _kept(LONG) > 60, "a row that is not long is torch's own, which runs nothing twice"


@pytest.mark.parametrize("kind", GATES)
def test_torch_accepts_the_operation_as_its_own(kind: str) -> None:
    weights = list(layer(kind, bidirectional=True).parameters())
    x_BTD = torch.randn(2, 3, 6, requires_grad=True)
    torch.library.opcheck(torch.ops.ossicle.gated_recurrence.default, (x_BTD, weights, kind))


@pytest.mark.parametrize("kind", GATES)
def test_it_computes_in_float32_under_autocast(kind: str) -> None:
    weights = list(layer(kind, bidirectional=True).parameters())
    x_BTD = torch.randn(2, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = gated_recurrence(kind, x_BTD.bfloat16().float(), weights)
    assert torch.equal(states, gated_recurrence(kind, x_BTD.bfloat16().float(), weights))


@pytest.mark.parametrize("kind", GATES)
def test_bfloat16_is_computed_and_said_in_float32(kind: str) -> None:
    half = [weight.bfloat16() for weight in layer(kind, bidirectional=True).parameters()]
    x_BTD = torch.randn(2, 5, 6).bfloat16()
    expected = gated_recurrence(kind, x_BTD.float(), [weight.float() for weight in half])
    assert torch.equal(gated_recurrence(kind, x_BTD, half), expected)  # which asks for the same type


@pytest.mark.parametrize("kind", GATES)
def test_its_cost_is_counted_without_walking_the_frames(kind: str) -> None:
    with torch.device("meta"):
        weights = list(LAYERS[kind](6, 4, bidirectional=True).parameters())
        x_BTD = torch.empty(2, 10**6, 6)
        macs = count_macs(lambda: gated_recurrence(kind, x_BTD, weights))
    assert macs == 2 * 10**6 * 2 * GATES[kind] * 4 * (6 + 4)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        gated_recurrence(kind, x_BTD, weights).sum().backward()
    assert counter.get_total_flops() == (1 + 3) * 2 * macs  # there, there again, and back for each factor
    assert len(weights) == 2 * WEIGHTS


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="no gated recurrence 'RNN'"):
        gated_recurrence("RNN", torch.randn(1, 2, 6), list(layer("GRU", bidirectional=False).parameters()))
