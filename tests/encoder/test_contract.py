"""What every encoder promises: walked over conf/encoder, so that a new one is held to it by its YAML."""

import inspect
from functools import partial
from typing import Any

import hypothesis
import pytest
import torch
from hydra.utils import get_class
from hypothesis import strategies as st

from ossicle.core.clock import FrameClock
from ossicle.encoder.base import Encoder
from ossicle.encoder.stack import Stack
from ossicle.launch.config import groups
from ossicle.launch.parts import option
from ossicle.layer.sampling import ConvolutionSampling
from ossicle.mixer.attention import Attention
from ossicle.mixer.base import MixerFactory
from ossicle.ops.packing import Packing

SMALL: dict[str, Any] = {
    "dim": 24, "num_layers": 3, "ffn_dim": 48, "gate_dim": 48, "position_kernel": 8, "position_groups": 4, "kernel": 5,
    "dropout": 0.0, "activation_dropout": 0.0, "layer_drop": 0.0,
}  # fmt: skip
"""What is set for every encoder that takes it."""
SMALLER: dict[str, dict[str, Any]] = {
    "progressive": {
        "input_dim": 20,
        "stages": [
            {"convolutions": [[12, 5, 2], [16, 1, 1]], "num_layers": 1, "ffn_dim": 24},
            {"convolutions": [[24, 3, 2]], "num_layers": 2, "ffn_dim": 32},
        ],
    },
    "elastic": {"dims": [24], "heads": [2], "ffn_ratios": [2.0], "depths": [3]},
    "hierarchical": {"layers_by_group": [1, 1, 1, 1, 1], "factors": [2, 3]},
}
"""What is set beside it for encoders that are described otherwise, by name."""
COMPOSED: dict[str, tuple[str, dict[str, Any]]] = {
    "mr_hubert": (
        "hierarchical",
        {"sampling": ConvolutionSampling, "skip": "after", "middle_residual": True, "group_norms": True},
    ),
    **{
        f"{name}, norms first": (name, {"norm_first": True})
        for name in ("transformer", "squeezed", "hierarchical", "progressive")
    },
}
"""Encoders that experiments make of others by their arguments."""
NAMES = [*groups()["encoder"], *COMPOSED]
ATTENTION = partial(Attention, num_heads=2, dropout=0.0)
CLOCK = FrameClock().then(400, 320)


def encoder(name: str, mixer: MixerFactory = ATTENTION, **more: object) -> Encoder:
    torch.manual_seed(0)
    name, composed = COMPOSED.get(name, (name, {}))
    node = option(name, "encoder")
    cls = get_class(node.pop("_target_"))
    node.pop("_partial_")
    known = inspect.signature(cls).parameters
    small = {key: value for key, value in (SMALL | SMALLER.get(name, {})).items() if key in known}
    built = cls(mixer=mixer, **(node | small | composed | more))
    assert isinstance(built, Encoder)
    return built


def uneven(name: str) -> Encoder:
    """An encoder in evaluation whose weights leave nothing where it starts: some gates and biases start at nothing."""
    built = encoder(name).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def frames_out(built: Encoder, frames: int) -> int:
    """Frames that come out of some that go in, as the clocks say."""
    return built.clock(CLOCK).num_frames(CLOCK.num_samples(frames))


@pytest.mark.parametrize("name", groups()["encoder"])
def test_its_yaml_states_every_number_and_each_as_the_class_has_it(name: str) -> None:
    node = option(name, "encoder")
    parameters = inspect.signature(get_class(node.pop("_target_"))).parameters.values()
    node.pop("_partial_")
    defaults = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    both = node.keys() & plain.keys()
    assert {key: node[key] for key in both} == {key: plain[key] for key in both}
    # what no number states: the stages of a rate each, and what changes the rate
    assert node.keys() ^ plain.keys() <= {"stages", "sampling"}


@pytest.mark.parametrize("name", NAMES)
@hypothesis.given(lengths=st.lists(st.integers(16, 40), min_size=2, max_size=3))
@hypothesis.settings(max_examples=8, deadline=None)
def test_a_padded_row_equals_the_row_alone_in_every_layer(name: str, lengths: list[int]) -> None:
    built = uneven(name)
    x_BTD = torch.randn(len(lengths), max(lengths), built.input_dim)
    valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    dirty_BTD = torch.where(valid_BT[..., None], x_BTD, torch.full_like(x_BTD, 1e3))
    padded = built(dirty_BTD, valid_BT, layers=True)
    for row, length in enumerate(lengths):
        alone = built(x_BTD[row : row + 1, :length], layers=True)
        count = alone.last_BTD.shape[1]
        torch.testing.assert_close(padded.last_BTD[row, :count], alone.last_BTD[0], atol=2e-5, rtol=2e-5)
        for ours, theirs in zip(padded.layers, alone.layers, strict=True):
            torch.testing.assert_close(ours[row, :count], theirs[0], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@hypothesis.given(lengths=st.lists(st.integers(16, 40), min_size=1, max_size=3))
@hypothesis.settings(max_examples=8, deadline=None)
def test_packed_utterances_equal_each_alone_in_every_layer(name: str, lengths: list[int]) -> None:
    built = uneven(name)
    x_PD = torch.randn(sum(lengths), built.input_dim)
    packed = built.packed(x_PD, Packing.of(lengths), layers=True)
    assert packed.lengths == tuple(frames_out(built, length) for length in lengths)
    together = [part.split(packed.lengths) for part in (packed.last_PD, *packed.layers)]
    for row, x_TD in enumerate(x_PD.split(lengths)):
        alone = built(x_TD[None], layers=True)
        for ours, theirs in zip(together, (alone.last_BTD, *alone.layers), strict=True):
            torch.testing.assert_close(ours[row], theirs[0], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["branchformer", "conformer", "transformer, norms first", "transformer"])
def test_one_norm_more_stands_after_the_last_block_or_where_norms_follow_before_the_first(name: str) -> None:
    built = uneven(name)
    assert isinstance(built, Stack)
    x_BTD = torch.randn(2, 20, built.dim)
    output, placed_BTD = built(x_BTD, layers=True), x_BTD + built.position(x_BTD)
    follows = name == "transformer"
    torch.testing.assert_close(output.layers[0], built.norm(placed_BTD) if follows else placed_BTD)
    torch.testing.assert_close(output.last_BTD, output.layers[-1] if follows else built.norm(output.layers[-1]))


@pytest.mark.parametrize("name", ["transformer", "transformer, norms first", "elastic"])  # that can drop frames
def test_of_kept_frames_none_hears_those_that_are_not_real(name: str) -> None:
    built = uneven(name)
    x_BTD = torch.randn(2, 20, built.input_dim)
    valid_BT = torch.arange(20) < torch.tensor([[20], [9]])
    kept_BM = torch.tensor([[0, 3, 4, 11, 19], [1, 2, 8, 9, 15]])
    padded_BMD = built(x_BTD, valid_BT, kept_BM=kept_BM).last_BTD
    alone_BMD = built(x_BTD[1:, :9], kept_BM=kept_BM[1:, :3]).last_BTD
    torch.testing.assert_close(padded_BMD[1, :3], alone_BMD[0], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames", [16, 37, 50])
def test_its_clock_counts_the_frames_that_come_out_and_every_layer_is_on_it(name: str, frames: int) -> None:
    built = encoder(name)
    output = built(torch.randn(2, frames, built.input_dim), layers=True)
    expected = (2, frames_out(built, frames), built.dim)
    assert output.last_BTD.shape == expected
    assert len(output.layers) == built.num_layers + 1
    assert all(layer.shape[:2] == expected[:2] for layer in output.layers)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_finite_gradient_in_bfloat16_too(name: str) -> None:
    for mixed in (False, True):
        built = encoder(name)
        x_BTD = torch.randn(2, 33, built.input_dim)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            out_BTD = built(x_BTD).last_BTD
        (out_BTD.float() * torch.randn(out_BTD.shape)).sum().backward()
        for key, parameter in built.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_and_runs_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        built = encoder(name)
    out_BTD = built(torch.empty(2, 40, built.input_dim, device="meta")).last_BTD
    assert out_BTD.shape == (2, frames_out(built, 40), built.dim)


@pytest.mark.parametrize("name", NAMES)
def test_its_blocks_compile_in_place_without_a_break_and_once_a_shape(name: str) -> None:
    torch._dynamo.reset()
    built = encoder(name).eval()
    plain = encoder(name).eval()
    assert isinstance(built.blocks, torch.nn.ModuleList)
    for block in built.blocks:
        block.compile(backend="eager", fullgraph=True, dynamic=False)
    for rows, frames in ((2, 20), (1, 32), (2, 20)):
        x_BTD = torch.randn(rows, frames, built.input_dim)
        torch.testing.assert_close(built(x_BTD).last_BTD, plain(x_BTD).last_BTD, atol=1e-5, rtol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        built(torch.randn(2, 20, built.input_dim))
    assert built.state_dict().keys() == plain.state_dict().keys()
