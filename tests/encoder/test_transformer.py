import functools

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from ossicle.core.errors import ConfigError
from ossicle.encoder.block import PostNormBlock
from ossicle.encoder.transformer import Transformer
from ossicle.mixer.attention import Attention
from ossicle.ops.packing import Packing

BOTH = pytest.mark.parametrize("norm_first", [False, True])


def build(norm_first: bool = False, dim: int = 16, num_layers: int = 3, **arguments: float) -> Transformer:
    torch.manual_seed(0)
    settings = {"dropout": 0.0, "layer_drop": 0.0} | arguments
    return Transformer(
        functools.partial(Attention, num_heads=2, dropout=0.0),
        dim=dim,
        num_layers=num_layers,
        ffn_dim=4 * dim,
        norm_first=norm_first,
        position_kernel=8,
        position_groups=4,
        dropout=settings["dropout"],
        layer_drop=settings["layer_drop"],
    )


@BOTH
@hypothesis.given(lengths=st.lists(st.integers(1, 15), min_size=2, max_size=4))
@hypothesis.settings(max_examples=15, deadline=None)
def test_a_padded_row_equals_the_row_alone_in_every_layer(norm_first: bool, lengths: list[int]) -> None:
    encoder = build(norm_first).eval()
    x_BTD = torch.randn(len(lengths), max(lengths), 16)
    valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    padded = encoder(x_BTD, valid_BT, layers=True)
    for row, length in enumerate(lengths):
        alone = encoder(x_BTD[row : row + 1, :length], layers=True)
        for ours, theirs in zip((*padded.layers, padded.last_BTD), (*alone.layers, alone.last_BTD), strict=True):
            torch.testing.assert_close(ours[row, :length], theirs[0], atol=1e-5, rtol=1e-5)


@BOTH
def test_layers_are_the_input_stage_and_each_block(norm_first: bool) -> None:
    encoder = build(norm_first).eval()
    outputs: list[Tensor] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    out = encoder(torch.randn(1, 5, 16), layers=True)
    assert len(out.layers) == 4
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(out.layers[1:], outputs, strict=True))
    assert torch.equal(out.last_BTD, encoder.norm(out.layers[-1]) if norm_first else out.layers[-1])
    assert encoder(torch.randn(1, 5, 16)).layers == ()


def test_layer_drop_skips_whole_blocks_as_often_as_stated_and_only_in_training() -> None:
    encoder = build(num_layers=6, layer_drop=0.25)
    ran: list[int] = []
    for index, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    x_BTD = torch.randn(1, 2, 16)
    torch.manual_seed(1)
    for _ in range(300):
        encoder(x_BTD)
    assert len(ran) / (300 * 6) == pytest.approx(0.75, abs=0.04)
    ran.clear()
    encoder.eval()(x_BTD)
    assert ran == list(range(6))


def test_layer_drop_follows_the_hosts_default_generator() -> None:
    encoder = build(num_layers=8, layer_drop=0.5)
    x_BTD = torch.randn(1, 4, 16)
    outs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outs.append(encoder(x_BTD, layers=True).last_BTD)
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_a_skipped_block_hands_its_input_on() -> None:
    encoder = build(layer_drop=0.999)
    out = encoder(torch.randn(1, 4, 16), layers=True)
    assert all(torch.equal(layer, out.layers[0]) for layer in out.layers)


@BOTH
def test_blocks_compile_in_place_without_a_break_once_for_all_and_keep_their_keys(norm_first: bool) -> None:
    torch._dynamo.reset()
    encoder = build(norm_first, layer_drop=0.3)
    x_BTD = torch.randn(2, 6, 16)
    valid_BT = torch.arange(6) < torch.tensor([6, 4])[:, None]
    expected = [encoder.eval()(x_BTD).last_BTD, encoder(x_BTD, valid_BT).last_BTD]
    keys = list(encoder.state_dict())
    counter = CompileCounterWithBackend("aot_eager")
    for block in encoder.blocks:
        block.compile(fullgraph=True, dynamic=False, backend=counter)
    torch.testing.assert_close(encoder(x_BTD).last_BTD, expected[0])
    assert counter.frame_count == 1
    torch.testing.assert_close(encoder(x_BTD, valid_BT).last_BTD, expected[1])
    encoder.train()(x_BTD).last_BTD.square().sum().backward()
    assert list(encoder.state_dict()) == keys


@pytest.mark.slow
def test_blocks_compile_with_inductor_to_the_same_values_and_gradients() -> None:
    torch._dynamo.reset()
    x_BTD = torch.randn(2, 6, 16)
    results = []
    for compiled in (False, True):
        encoder = build(num_layers=1)
        for block in encoder.blocks if compiled else ():
            block.compile(fullgraph=True, dynamic=False)
        encoder(x_BTD).last_BTD.square().sum().backward()
        results.append([parameter.grad for parameter in encoder.parameters()])
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@BOTH
def test_bf16_stays_finite_forward_and_backward(norm_first: bool) -> None:
    encoder = build(norm_first, dropout=0.1).bfloat16()
    valid_BT = torch.arange(9) < torch.tensor([9, 1])[:, None]
    out = encoder(100 * torch.randn(2, 9, 16, dtype=torch.bfloat16), valid_BT).last_BTD
    out.float().square().mean().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_it_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        encoder = Transformer(Attention)
    assert encoder(torch.empty(1, 7, 768, device="meta")).last_BTD.shape == (1, 7, 768)


def test_a_layer_drop_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer_drop=1"):
        Transformer(Attention, layer_drop=1.0)


def test_kept_frames_alone_are_encoded_at_the_places_that_they_had() -> None:
    torch.manual_seed(0)
    encoder = build().eval()
    x_BTD = torch.randn(2, 12, 16)
    everything = torch.arange(12).expand(2, 12)
    torch.testing.assert_close(encoder(x_BTD, kept_BM=everything).last_BTD, encoder(x_BTD).last_BTD)
    kept_BM = torch.tensor([[0, 3, 4, 11], [1, 2, 8, 9]])
    placed_BTD = x_BTD + encoder.position(x_BTD)
    expected = placed_BTD.gather(1, kept_BM[..., None].expand(-1, -1, 16))
    expected = expected if encoder.norm_first else encoder.norm(expected)
    for block in encoder.blocks:
        expected = block(expected, None)
    torch.testing.assert_close(encoder(x_BTD, kept_BM=kept_BM).last_BTD, expected)


@pytest.mark.parametrize("position_layers", [2, 3])
def test_positions_of_several_convolutions_are_those_of_the_utterance_alone(position_layers: int) -> None:
    torch.manual_seed(0)
    encoder = Transformer(
        functools.partial(Attention, num_heads=2), dim=16, num_layers=1, ffn_dim=32, position_kernel=7,
        position_groups=4, position_layers=position_layers,
    ).eval()  # fmt: skip
    assert sum(isinstance(part, torch.nn.Conv1d) for part in encoder.position.modules()) == position_layers
    lengths = [30, 17, 2]
    rows = [torch.randn(length, 16) for length in lengths]
    padded_BTD = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1e3)
    padded = encoder(padded_BTD, torch.arange(30) < torch.tensor(lengths)[:, None]).last_BTD
    packed = encoder.packed(torch.cat(rows), Packing.of(lengths)).last_PD.split(lengths)
    for row, alone_TD in enumerate(rows):
        expected = encoder(alone_TD[None]).last_BTD[0]
        torch.testing.assert_close(padded[row, : lengths[row]], expected, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(packed[row], expected, atol=2e-5, rtol=2e-5)


def test_a_post_norm_block_compiles_into_one_graph_with_our_kernels_for_a_gpu_that_is_not_here() -> None:
    # tensors that claim to be on a GPU, of which dynamo reads no more than that
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        mixer = Attention(32, 2, dropout=0.0, backend="reference")
        block = PostNormBlock(mixer, 32, 64, dropout=0.1, activation_dropout=0.0).train()
        found = torch._dynamo.explain(block)(torch.randn(2, 9, 32))
    assert found.graph_break_count == 0, found.break_reasons
    (graph,) = found.graphs
    ours = [str(node.target) for node in graph.graph.nodes if "ossicle" in str(node.target)]
    norms = ["ossicle.held.default", "ossicle.residual_norm.default"]
    assert ours == [*norms, "ossicle.bias_gelu.default", *norms]
