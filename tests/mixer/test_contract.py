"""What every mixer promises, whatever it is: walked over conf/mixer, so that a new one is held to it by its YAML."""

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import hypothesis
import pytest
import torch
from hydra.utils import get_class
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from ossicle.core.errors import MissingExtraError
from ossicle.launch.config import groups
from ossicle.launch.parts import option
from ossicle.mixer.base import Lender, Mixer, MixerStack, Placed, build_mixers, run_lending, run_placed
from ossicle.ops import dropout
from ossicle.ops.attention_backends import BACKENDS

DIM = 24
SMALL = {"num_heads": 3, "dropout": 0.0}
"""What is set for every mixer that takes it: heads that divide the width, and nothing random."""
NAMES = [name for name in groups()["mixer"] if name != "pattern"]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention, wide heads": ("attention", {"head_dim": 10}),
    "convolution, dynamic": ("convolution", {"kind": "dynamic"}),
    "convolution, depthwise": ("convolution", {"kind": "depthwise"}),
    "hyena, order 1": ("hyena", {"order": 1}),
    "hyena, order 3": ("hyena", {"order": 3}),
    "local_attention, global frames": ("local_attention", {"num_global": 2, "window": 4}),
    "lsra, light": ("lsra", {"kind": "light"}),
    "lsra, depthwise": ("lsra", {"kind": "depthwise"}),
    "strided_attention, merged": ("strided_attention", {"pattern": "merged", "stride": 4}),
    "summary, fast": ("summary", {"kind": "fast"}),
    "summary, lite": ("summary", {"kind": "lite"}),
    "summary, fading": ("summary", {"decay": 0.9}),
    "summary, chunks": ("summary", {"chunk": 4}),
    "summary, fading in chunks": ("summary", {"decay": 0.9, "chunk": 4}),
    "summary, chunks to the left": ("summary", {"chunk": 4, "left_chunks": 1}),
    "synthesizer_dense, factorised": ("synthesizer_dense", {"max_frames": 60, "factor": 6}),
}
"""What some of them are by other numbers: the YAML, and these."""
ALL = [*NAMES, *VARIANTS]


def takers(argument: str) -> list[str]:
    """The mixers that are given an argument by this name."""
    return [name for name in ALL if argument in option(VARIANTS.get(name, (name, {}))[0], "mixer")]


def factory(name: str, **more: object) -> Callable[[int], Mixer] | MixerStack:
    """The mixer of a YAML or a variant, but for the numbers in SMALL and those that are named and known to it."""
    yaml, numbers = VARIANTS.get(name, (name, {}))
    node = option(yaml, "mixer")
    cls = get_class(node.pop("_target_"))
    is_partial = node.pop("_partial_", False)
    known = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {
        **node,
        **{key: value for key, value in (SMALL | numbers | more).items() if key in known},
    }
    return partial(cls, **arguments) if is_partial else cls(**arguments)


def mixers(name: str, num_layers: int = 2, **more: object) -> list[Mixer]:
    """Some layers of a mixer, with weights that leave nothing at zero."""
    torch.manual_seed(1)
    try:
        built = build_mixers(factory(name, **more), [DIM] * num_layers)
    except MissingExtraError as error:
        pytest.skip(str(error))
    for mixer in built:
        for parameter in mixer.parameters():
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return built


class Chain(nn.Module):
    """Mixers one after another with residuals, as an encoder runs them: what is lent is borrowed."""

    def __init__(self, layers: Sequence[Mixer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x_BTD: torch.Tensor, valid_BT: torch.Tensor | None = None) -> torch.Tensor:
        return self.run(x_BTD, valid_BT, lambda layer: layer)

    def packed(self, x_PD: torch.Tensor, cu_seqlens: torch.Tensor, max_frames: int) -> torch.Tensor:
        return self.run(x_PD, None, lambda layer: lambda y_PD, _: layer.packed(y_PD, cu_seqlens, max_frames))

    def run(self, x: torch.Tensor, valid_BT: torch.Tensor | None, call: Callable[[Any], Any]) -> torch.Tensor:
        loans: dict[Mixer, tuple[torch.Tensor, ...]] = {}
        for layer in self.layers:
            if isinstance(layer, Lender):
                borrowed = () if layer.creditor is None else loans[layer.creditor]
                assert layer.creditor is None or borrowed
                mixed, loans[layer] = run_lending(call(layer), layer, x, valid_BT, borrowed)
            else:
                mixed = call(layer)(x, valid_BT)
            x = x + mixed
        return x


def defaults(cls: type) -> dict[str, object]:
    """What a constructor takes where nothing is said."""
    parameters = inspect.signature(cls).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("name", NAMES)
def test_its_yaml_states_every_number_and_each_as_the_class_has_it(name: str) -> None:
    node = option(name, "mixer")
    cls = get_class(node.pop("_target_"))
    node.pop("_partial_", None)
    assert node == defaults(cls)
    if issubclass(cls, MixerStack):  # what its layers have where they are made one by one
        layer = defaults(type(mixers(name, 1)[0]))
        both = layer.keys() & node.keys()
        assert {key: layer[key] for key in both} == {key: node[key] for key in both}


@pytest.mark.parametrize("name", ALL)
@hypothesis.given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4))
@hypothesis.settings(max_examples=8, deadline=None)
def test_padded_equals_packed_equals_one_at_a_time(name: str, lengths: list[int]) -> None:
    chain = Chain(mixers(name)).eval()
    x_BTD = torch.randn(len(lengths), max(lengths), DIM)
    valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    padded_BTD = chain(x_BTD, valid_BT)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    packed_PD = chain.packed(x_BTD[valid_BT], cu_seqlens, max(lengths))
    for row, (length, packed_TD) in enumerate(zip(lengths, packed_PD.split(lengths), strict=True)):
        alone_TD = chain(x_BTD[row : row + 1, :length])[0]
        torch.testing.assert_close(padded_BTD[row, :length], alone_TD, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(packed_TD, alone_TD, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_what_stands_in_padding_changes_nothing(name: str) -> None:
    chain = Chain(mixers(name)).eval()
    valid_BT = torch.arange(20) < torch.tensor([[20], [11]])
    x_BTD = torch.randn(2, 20, DIM)
    other_BTD = torch.where(valid_BT[..., None], x_BTD, torch.full_like(x_BTD, 1e4))
    assert torch.equal(chain(x_BTD, valid_BT)[valid_BT], chain(other_BTD, valid_BT)[valid_BT])


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_and_every_frame_gets_a_gradient(name: str) -> None:
    chain = Chain(mixers(name))
    x_BTD = torch.randn(2, 19, DIM, requires_grad=True)
    chain(x_BTD).square().sum().backward()
    assert x_BTD.grad is not None
    assert (x_BTD.grad.abs().sum(-1) > 0).all()
    for key, parameter in chain.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ALL)
def test_neighbours_on_both_sides_reach_a_frame(name: str) -> None:
    (mixer, *_) = mixers(name, 1)
    x_BTD = torch.randn(1, 9, DIM, requires_grad=True)
    mixer(x_BTD)[0, 4].square().sum().backward()
    assert x_BTD.grad is not None
    before, after = x_BTD.grad[0, 3], x_BTD.grad[0, 5]
    assert before.abs().sum() > 0
    assert after.abs().sum() > 0


@pytest.mark.parametrize("name", ALL)
def test_it_runs_in_bfloat16_at_any_length_without_a_nan(name: str) -> None:
    chain = Chain(mixers(name))
    for frames in (1, 2, 37):
        x_BTD = (30 * torch.randn(2, frames, DIM)).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out_BTD = chain(x_BTD)
        assert out_BTD.isfinite().all()
        # Some grow with the fifth power of what comes in: squares of that would be no test.
        (out_BTD.float() / out_BTD.detach().float().abs().max()).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in chain.parameters())


@pytest.mark.parametrize("name", ALL)
def test_a_model_that_is_bfloat16_throughout_stays_so(name: str) -> None:
    x_BTD, edges = torch.randn(2, 9, DIM).bfloat16(), torch.tensor([0, 9, 18], dtype=torch.int32)
    chain = Chain(mixers(name)).bfloat16()
    exact_BTD = copy.deepcopy(chain).eval().float()(x_BTD.float())
    for _ in range(2):  # in training, then not
        out_BTD = chain(x_BTD)
        padded_BTD = chain(x_BTD, torch.arange(9) < torch.tensor([[9], [5]]))
        packed_PD = chain.packed(x_BTD.flatten(0, 1), edges, 9)
        assert {out_BTD.dtype, padded_BTD.dtype, packed_PD.dtype} == {torch.bfloat16}
        assert all(out.isfinite().all() for out in (out_BTD, padded_BTD, packed_PD))
        chain = chain.eval()
    chain = Chain(mixers(name)).bfloat16().eval()
    tolerance = 0.05 * exact_BTD.abs().max().item()
    torch.testing.assert_close(chain(x_BTD).float(), exact_BTD, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_it_is_one_graph_and_compiles_once_a_shape(name: str) -> None:
    chain = Chain(mixers(name))
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(copy.deepcopy(chain), backend=counter, fullgraph=True, dynamic=False)
    shapes = [(2, 16), (3, 24), (2, 16), (3, 24), (2, 16)]
    for rows, frames in shapes:
        x_BTD = torch.randn(rows, frames, DIM)
        torch.testing.assert_close(compiled(x_BTD), chain(x_BTD), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == len(set(shapes))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_with_padding_dropout_and_gradients_it_is_one_graph_that_equals_what_is_not_compiled(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # our own dropout draws other numbers when it is compiled (tests/ops/test_dropout.py): here torch's serves in both
    monkeypatch.setattr(dropout, "_native", lambda _: False)
    monkeypatch.setattr(dropout, "PLACES", 0)
    chain = Chain(mixers(name, 2 if isinstance(factory(name), MixerStack) else 1, dropout=0.2))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(copy.deepcopy(chain), backend=counter, fullgraph=True, dynamic=False)
    for lengths in ([16, 9], [5, 16]):
        valid_BT = torch.arange(16) < torch.tensor(lengths)[:, None]
        made = []
        for run in (chain, compiled):
            torch.manual_seed(sum(lengths))
            x_BTD = torch.randn(2, 16, DIM).requires_grad_()
            out = run(x_BTD, valid_BT)[valid_BT]
            grads = torch.autograd.grad((out * torch.randn(out.shape)).sum(), [x_BTD, *run.parameters()])
            made.append((out, *grads))
        for ours, theirs in zip(*made, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", [name for name in takers("dropout") if name != "summary, lite"])  # has no map c
def test_its_dropout_reaches_every_frame_and_channel_in_training_alone(name: str) -> None:
    x_BTD, valid_BT = torch.randn(2, 19, DIM), torch.ones(2, 19, dtype=torch.bool)
    edges = torch.tensor([0, 19, 38], dtype=torch.int32)
    for rate in (0.5, 0.0):
        for mixer in mixers(name, dropout=rate):
            if isinstance(out := getattr(mixer, "out", None), nn.Linear) and out.in_features == DIM:
                nn.init.eye_(out.weight)  # heads are then seen apart
            for call in (
                lambda mixer=mixer: mixer(x_BTD),
                lambda mixer=mixer: mixer(x_BTD, valid_BT),
                lambda mixer=mixer: mixer.packed(x_BTD.flatten(0, 1), edges, 19).view_as(x_BTD),
            ):
                mixer.train()
                differs = call() != call()
                assert bool(differs.any(-1).all()) == (rate > 0), "frames"
                assert bool(differs.any((0, 1)).all()) == (rate > 0), "channels"
                mixer.eval()
                assert torch.equal(call(), call())


@pytest.mark.parametrize("name", [name for name in takers("backend") if "global" not in name])
def test_the_kernel_that_is_named_is_the_one_that_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def noted(kind: type, way: str) -> Callable[..., torch.Tensor]:
        real = getattr(kind, way)
        return lambda self, *args, **more: (ran.append(self.name), real(self, *args, **more))[1]

    for kind in map(type, BACKENDS.values()):
        for way in ("dense", "packed"):
            monkeypatch.setattr(kind, way, noted(kind, way))
    x_BTD, edges = torch.randn(2, 19, DIM), torch.tensor([0, 19, 38], dtype=torch.int32)
    chain = Chain(mixers(name, backend="reference"))
    chain(x_BTD)
    assert len(ran) >= len(chain.layers)
    chain.packed(x_BTD.flatten(0, 1), edges, 19)
    assert set(ran) == {"reference"}


@pytest.mark.parametrize("name", takers("head_dim"))
def test_heads_of_a_width_of_their_own_are_of_that_width_in_every_layer(name: str) -> None:
    chain = Chain(mixers(name, head_dim=10))
    maps = {key: part for key, part in chain.named_modules() if key.rpartition(".")[2] in {"query", "key", "value"}}
    assert maps
    assert {part.weight.shape for part in maps.values()} == {(30, DIM)}
    assert chain(torch.randn(2, 5, DIM)).shape == (2, 5, DIM)


@pytest.mark.parametrize("name", ALL)
def test_it_builds_and_runs_on_the_meta_device(name: str) -> None:
    try:
        with torch.device("meta"):
            chain = Chain(build_mixers(factory(name), [DIM] * 2))
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert chain(torch.empty(2, 50, DIM, device="meta")).shape == (2, 50, DIM)


@pytest.mark.parametrize("name", ALL)
def test_its_weights_load_into_another_of_its_kind(name: str) -> None:
    first, second = Chain(mixers(name)).eval(), Chain(build_mixers(factory(name), [DIM] * 2)).eval()
    second.load_state_dict(first.state_dict())
    x_BTD = torch.randn(2, 13, DIM)
    assert torch.equal(first(x_BTD), second(x_BTD))


@pytest.mark.parametrize("name", ALL)
def test_what_reads_no_order_mixes_frames_in_any_order_to_the_same(name: str) -> None:
    mixer = mixers(name, 1, window=2, stride=4)[0].eval().double()
    x_BTD = torch.randn(2, 12, DIM, dtype=torch.float64)
    order_T = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    wanted_BTD, moved_BTD = mixer(x_BTD)[:, order_T], x_BTD[:, order_T]
    if isinstance(mixer, Placed):
        got_BTD = run_placed(mixer, mixer, moved_BTD, None, order_T.expand(2, -1))
    else:
        got_BTD = mixer(moved_BTD)
    assert torch.allclose(got_BTD, wanted_BTD.expand(got_BTD.shape), atol=1e-9) == (not mixer.reads_order)
