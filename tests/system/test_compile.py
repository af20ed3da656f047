"""Blocks as ``compile=true`` runs them: how many graphs they make, counted by a backend that compiles nothing."""

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from ossicle.core.errors import MissingExtraError
from ossicle.encoder.base import Encoder
from ossicle.encoder.elastic import Elastic
from ossicle.encoder.transformer import Transformer
from ossicle.mixer.attention import Attention
from ossicle.mixer.base import MixerFactory
from ossicle.mixer.fourier import Fourier
from ossicle.mixer.pattern import Pattern
from ossicle.mixer.synthesizer_random import SynthesizerRandom
from ossicle.system import execution
from ossicle.system.execution import compile_blocks
from tests.encoder.test_contract import NAMES as ENCODERS
from tests.encoder.test_contract import encoder
from tests.mixer.test_contract import DIM, factory

KINDS = {"alibi_attention": 2, "disentangled_attention": 2, "relative_attention": 2, "reused_attention": 2}
"""Kinds of layers where one lends and the others borrow; all others are of one kind."""
SHAPES = [(3, 20), (2, 30), (4, 16)]
MIXERS = ("attention", "convolution", "hyena", *KINDS)
"""One of each kind of graphs: that each mixer by itself is one graph, its contract tests."""


@pytest.fixture(autouse=True)
def _torchs_own_limits() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        yield


def compiled(built: Encoder, backend: str = "eager", num_shapes: int = 32) -> CompileCounterWithBackend:
    """Compile an encoder's blocks as a run does, and count their graphs."""
    counter = CompileCounterWithBackend(backend)
    compile_blocks(nn.ModuleDict({"encoder": built}), counter, num_shapes=num_shapes)
    return counter


def transformer(mixer: MixerFactory, **more: Any) -> Transformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": DIM, "num_layers": 3, "ffn_dim": 48, "position_kernel": 8, "position_groups": 4}
    rates = {"dropout": 0.2, "activation_dropout": 0.2, "layer_drop": 0.0}
    return Transformer(mixer, **(sizes | rates | more)).train()


def train(built: Encoder, rows: int, frames: int, *, masked: bool = False) -> torch.Tensor:
    """A step's passes there and back."""
    valid_BT = torch.arange(frames) < torch.tensor([[frames]] * (rows - 1) + [[frames - 7]]) if masked else None
    built.zero_grad()
    out_BTD = built(torch.randn(rows, frames, built.input_dim), valid_BT).last_BTD
    out_BTD.square().mean().backward()
    assert out_BTD.isfinite().all()
    return out_BTD.detach()


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
def test_a_mixers_blocks_are_one_graph_a_kind_in_training_with_dropout_and_a_mask(name: str) -> None:
    try:
        built = transformer(factory(name, dropout=0.2))
    except MissingExtraError as error:
        pytest.skip(str(error))
    counter = compiled(built)
    for _ in range(2):
        train(built, 3, 20, masked=True)
        # positions and the norm before the blocks are compiled as well
        assert counter.frame_count == KINDS.get(name, 1) + 2
    assert not counters["graph_break"]
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in built.parameters())
    x_BTD, valid_BT = torch.randn(3, 20, DIM), torch.arange(20) < torch.tensor([[20], [20], [13]])
    with torch.compiler.set_stance("fail_on_recompile"):  # dropout draws anew in the same graph
        assert not torch.equal(built(x_BTD, valid_BT).last_BTD, built(x_BTD, valid_BT).last_BTD)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoders_blocks_compile_once_a_shape_in_training_with_dropout_and_masks(name: str) -> None:
    mixer = partial(Attention, num_heads=2, dropout=0.2)
    rates = {} if name == "recurrent" else {"dropout": 0.2}
    built = encoder(name, mixer, **rates).train()
    counter = compiled(built)
    train(built, *SHAPES[0])
    train(built, *SHAPES[1], masked=True)
    graphs = counter.frame_count
    with torch.compiler.set_stance("fail_on_recompile"):
        train(built, *SHAPES[0])
        train(built, *SHAPES[1], masked=True)
    assert counter.frame_count == graphs > 0
    assert not counters["graph_break"]


def test_more_shapes_and_kinds_than_torch_allows_by_itself_are_all_compiled() -> None:
    built = transformer(Pattern([Fourier, partial(SynthesizerRandom, num_heads=2, dropout=0.2, max_frames=40)]))
    counter = compiled(built, num_shapes=5)
    shapes = [(2, 16 + 4 * place) for place in range(5)]
    for _ in range(2):
        for shape in shapes:
            train(built, *shape)
        assert counter.frame_count == len(shapes) * (2 + 2)
    with torch.compiler.set_stance("fail_on_recompile"):
        train(built, *shapes[0])


def test_evaluation_beside_training_has_graphs_of_its_own_within_the_limit() -> None:
    built = transformer(Fourier, num_layers=2)
    counter = compiled(built, num_shapes=2)
    for shape in SHAPES[:2]:
        train(built, *shape)
        with torch.no_grad():
            built.eval()(torch.randn(*shape, DIM))
        built.train()
    assert counter.frame_count == 2 * 2 * (1 + 2)


def test_what_comes_after_the_limit_runs_uncompiled_and_the_user_is_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(execution, "RUNS", 0)
    built = transformer(Fourier, num_layers=1)
    caplog.handler.setLevel(logging.WARNING)
    with torch._dynamo.config.patch(recompile_limit=2):
        counter = compiled(built)
        for shape in SHAPES[:2]:
            train(built, *shape)
        assert not caplog.records
        train(built, *SHAPES[2])
    assert counter.frame_count == 2 * (1 + 2)
    assert "recompile_limit (2)" in caplog.text


def supernet(dropout: float) -> Elastic:
    torch.manual_seed(0)
    attention = partial(Attention, num_heads=6, dropout=dropout)
    return Elastic(
        attention, dims=(24, 36, 48), heads=(4, 5, 6), ffn_ratios=(3.5, 4.0), depths=(2, 3), dropout=dropout,
        position_kernel=8, position_groups=8,
    ).train()  # fmt: skip


def test_a_supernets_sizes_share_a_few_graphs() -> None:
    built = supernet(0.2)
    counter = compiled(built)
    drawn: set[tuple[int, ...]] = set()
    graphs = []
    for step in range(24):
        torch.manual_seed(step)
        subnet = built.draw()
        drawn |= {(subnet.dim, *sizes) for sizes in zip(subnet.num_heads, subnet.ffn_dims, strict=True)}
        torch.manual_seed(step)
        train(built, *SHAPES[step % len(SHAPES)])
        graphs.append(counter.frame_count)
    assert len(drawn) > 12  # times three shapes, were each a graph
    assert graphs[-1] <= 8
    assert graphs[-1] == graphs[12]
    assert not counters["graph_break"]


def test_a_compiled_supernet_trains_as_one_that_is_not() -> None:
    built, plain = supernet(0.0), supernet(0.0)
    compiled(built, "aot_eager")
    for step in range(3):
        x_BTD = torch.randn(*SHAPES[0], 48, generator=torch.Generator().manual_seed(step))
        for one in (built, plain):
            torch.manual_seed(step)
            one.zero_grad()
            one(x_BTD).last_BTD.square().mean().backward()
        for (name, ours), theirs in zip(built.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


@pytest.mark.slow
def test_torchs_own_compiler_serves_all_sizes_of_a_supernet_with_a_few_graphs_and_the_same_gradients() -> None:
    built, plain = supernet(0.0), supernet(0.0)
    counter = compiled(built, "inductor")
    drawn: set[tuple[object, ...]] = set()
    for step in range(18):
        shape = SHAPES[step % len(SHAPES)]
        x_BTD = torch.randn(*shape, 48, generator=torch.Generator().manual_seed(step))
        torch.manual_seed(step)
        subnet = built.draw()
        drawn |= {(shape, subnet.dim, *sizes) for sizes in zip(subnet.num_heads, subnet.ffn_dims, strict=True)}
        for one in (built, plain):
            torch.manual_seed(step)
            one.zero_grad()
            one(x_BTD).last_BTD.square().mean().backward()
        for (name, ours), theirs in zip(built.named_parameters(), plain.named_parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs[1].grad, atol=1e-5, rtol=1e-4, msg=name)
    # Its kernels are for one width of frames each, with all heads or with some, and the first ones for one shape.
    assert len(drawn) > 24 >= 2 * counter.frame_count
    assert not counters["graph_break"]
