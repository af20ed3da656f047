"""What every frontend promises: walked over conf/frontend, so that a new one is held to it by its YAML."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import hypothesis
import pytest
import torch
from hydra.utils import get_class
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call

from ossicle.core.errors import DataError
from ossicle.frontend.base import Frontend
from ossicle.launch.config import groups
from ossicle.launch.parts import option

SMALL: dict[str, Any] = {"num_mels": 20, "num_codes": 6, "gradient_scale": 1.0}
"""What is set for every frontend that takes it, beside its convolutions, which are made thin."""
CHANNELS = 8
NAMES = groups()["frontend"]
LEARNED = [name for name in NAMES if name not in {"logmel", "logmel_stacked"}]
"""Those with parameters."""
SMOOTH = [name for name in LEARNED if name != "wave_quantised"]
"""Those whose gradients are derivatives: the gradient through a choice of codes stands for one that is zero."""
LOCAL = 160
"""Samples by which norms over time are blind to a shift: every first stride, and log-mel's hop, divides it."""


def whole(name: str, group: str = "frontend") -> dict[str, Any]:
    """A YAML with the parts that it composes."""
    node = option(name, group)
    for entry in node.pop("defaults", []):
        for place, choice in dict(entry if isinstance(entry, Mapping) else {}).items():
            inner, _, key = place.lstrip("/").partition("@")
            node[key] = whole(choice, inner)
    return node


def factory(node: Mapping[str, Any]) -> partial[Any]:
    """What makes a part of its node's numbers, but for those that are small."""
    cls = get_class(node["_target_"])
    known = inspect.signature(cls).parameters
    numbers = {key: value for key, value in node.items() if not key.startswith("_")}
    numbers |= {key: factory(value) for key, value in numbers.items() if isinstance(value, Mapping)}
    numbers |= {key: value for key, value in SMALL.items() if key in known}
    if "convolutions" in numbers:
        numbers["convolutions"] = [[CHANNELS, kernel, stride] for _, kernel, stride in numbers["convolutions"]]
    return partial(cls, **numbers)


def frontend(name: str) -> Frontend:
    """A small one in evaluation, with weights that leave nothing at zero."""
    torch.manual_seed(0)
    built = factory(whole(name))()
    assert isinstance(built, Frontend)
    for parameter in built.parameters():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval()


def in_float64(built: Frontend) -> Frontend:
    """The same in float64, but for log-mel energies, which are made in float32."""
    for inner in built.children():
        if isinstance(inner, Frontend):
            inner.register_forward_hook(
                lambda _, __, frames: replace(frames, features_BTC=frames.features_BTC.double())
            )
    return built.double()


@pytest.mark.parametrize("name", ["logmel", "logmel_conv", "wave"])  # the others are these, or theirs, by other numbers
def test_its_yaml_states_every_number_and_each_as_the_class_has_it(name: str) -> None:
    node = option(name, "frontend")
    parameters = inspect.signature(get_class(node.pop("_target_"))).parameters.values()
    del node["_partial_"]
    defaults = {each.name: each.default for each in parameters}
    if "convolutions" in defaults:
        defaults["convolutions"] = list(map(list, defaults["convolutions"]))
    assert node == defaults


@pytest.mark.parametrize("name", NAMES)
@hypothesis.given(more=st.lists(st.integers(0, 3_000), min_size=2, max_size=4))
@hypothesis.settings(max_examples=10, deadline=None)
def test_a_padded_row_equals_the_row_alone_whatever_stands_in_padding(name: str, more: list[int]) -> None:
    built = frontend(name)
    lengths = [built.clock.num_samples(1) + samples for samples in more]
    waveform_BS = torch.randn(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveform_BS[row, length:] *= 100
    frames = built(waveform_BS, torch.tensor(lengths))
    assert frames.valid_BT is not None
    for row, length in enumerate(lengths):
        alone = built(waveform_BS[row : row + 1, :length]).features_BTC[0]
        assert frames.valid_BT[row].sum() == len(alone) == built.clock.num_frames(length)
        assert frames.valid_BT[row, : len(alone)].all()
        torch.testing.assert_close(frames.features_BTC[row, : len(alone)], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_its_clock_counts_the_frames_of_every_length_from_the_first_that_has_one(name: str) -> None:
    built = frontend(name)
    shortest = built.clock.num_samples(1)
    waveform_BS = torch.randn(1, shortest + 400)
    for samples in range(shortest, shortest + 400):
        with torch.no_grad():
            features_BTC = built(waveform_BS[:, :samples]).features_BTC
        assert features_BTC.shape == (1, built.clock.num_frames(samples), built.dim), samples
    with pytest.raises(DataError, match=f"{shortest - 1} samples are fewer than the {shortest} of one frame"):
        built(waveform_BS[:, : shortest - 1])


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_hears_the_samples_of_its_field_and_no_other(name: str) -> None:
    # Norms over time let all samples be heard by every frame. They see the same wherever a click stands in silence, if
    # it is moved by whole steps; so a frame changes where a click moves into its field from elsewhere, and there alone.
    built = frontend(name)
    if built.quantises:
        built = built.get_submodule("frontend")
        assert isinstance(built, Frontend)
    built, clock, frame = in_float64(built), built.clock, 10
    first = clock.offset_samples + frame * clock.stride_samples
    last = first + clock.kernel_samples - 1

    def heard(sample: int) -> torch.Tensor:
        waveform_BS = torch.zeros(1, last + clock.kernel_samples + 4_000, dtype=torch.float64)
        waveform_BS[0, sample] = 1
        return built(waveform_BS).features_BTC[0, frame].detach()

    steps = clock.kernel_samples // LOCAL + 2
    for sample in (first - 1, first, first + 1, (first + last) // 2, last - 1, last, last + 1):
        change = (heard(sample) - heard(sample + steps * LOCAL)).abs().max()
        assert (change > 1e-6) == (first <= sample <= last), (sample - first, float(change))


@pytest.mark.parametrize("name", NAMES)
def test_in_bfloat16_silence_noise_and_clipping_stay_finite_and_so_do_gradients(name: str) -> None:
    built = frontend(name).train()
    samples = built.clock.num_samples(6)
    for waveform_BS in (
        torch.zeros(2, samples),
        torch.randn(2, samples),
        torch.randn(2, samples).mul(1e3).clamp(-1, 1),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            frames = built(waveform_BS, torch.tensor([samples, samples - 500]))
        assert frames.features_BTC.isfinite().all()
        assert frames.valid_BT is not None
        if name in LEARNED:
            built.zero_grad()
            frames.features_BTC[frames.valid_BT].float().square().mean().backward()
            for key, parameter in built.named_parameters():
                assert parameter.grad is not None, key
                assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_and_runs_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        built = factory(whole(name))()
    for samples in (4_000, 4_321):
        frames = built(torch.empty(2, samples, device="meta"))
        assert frames.features_BTC.shape == (2, built.clock.num_frames(samples), built.dim)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_with_padding_and_gradients_it_is_one_graph_a_shape_that_equals_what_is_not_compiled(name: str) -> None:
    built = frontend(name)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(copy.deepcopy(built), backend=counter, fullgraph=True, dynamic=False)
    shapes = [(2, 1_600), (1, 2_000), (2, 1_600)]
    for rows, samples in shapes:
        waveform_BS, lengths_B = torch.randn(rows, samples), torch.tensor([samples, samples - 700][:rows])
        made = []
        for run in (built, compiled):
            frames = run(waveform_BS, lengths_B)
            features = frames.features_BTC[frames.valid_BT]
            run.zero_grad()
            if name in LEARNED:
                features.sin().sum().backward()
            made.append((features, *(p.grad for p in run.parameters() if p.grad is not None)))
        for ours, theirs in zip(*made, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert counter.frame_count == len(set(shapes))


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_of_its_parameters_pass_gradcheck_with_padding(name: str) -> None:
    built = in_float64(frontend(name))
    samples = built.clock.num_samples(4)
    waveform_BS = torch.randn(2, samples, dtype=torch.float64)
    lengths_B = torch.tensor([samples, built.clock.num_samples(2)])
    parameters = dict(built.named_parameters())

    def features(*values: torch.Tensor) -> torch.Tensor:
        weights = dict(zip(parameters, values, strict=True))
        frames = functional_call(built, weights, (waveform_BS, lengths_B))
        return frames.features_BTC[frames.valid_BT]

    values = tuple(value.detach().clone().requires_grad_() for value in parameters.values())
    assert torch.autograd.gradcheck(features, values, fast_mode=True)
