"""Every frontend under torch.compile: walked over conf/frontend."""

import copy
from typing import Any

import pytest
import torch
from hydra.utils import get_class
from torch._dynamo.testing import CompileCounterWithBackend

from ossicle.frontend.base import Frontend
from ossicle.launch.config import groups
from ossicle.launch.parts import option

NAMES = [name for name in groups()["frontend"] if name != "wave_quantised"]  # which is another frontend and a quantiser
PLACES = [
    *((name, {}) for name in NAMES),
    ("logmel", {"band_shift": 3}),
    ("logmel_conv", {"gated": True, "band_shift": 3}),
]


def frontend(name: str, **more: object) -> Frontend:
    """The frontend of a YAML, with a 32nd of its channels."""
    torch.manual_seed(0)
    node: dict[str, Any] = {key: value for key, value in option(name, "frontend").items() if key != "_partial_"}
    cls = get_class(node.pop("_target_"))
    if "convolutions" in node:
        node["convolutions"] = [[max(4, channels // 32), *rest] for channels, *rest in node["convolutions"]]
    built = cls(**{**node, **more})
    assert isinstance(built, Frontend)
    return built.train()


@pytest.mark.parametrize(("name", "more"), PLACES)
def test_it_is_one_graph_and_compiles_once_a_shape_in_training(name: str, more: dict[str, object]) -> None:
    torch._dynamo.reset()
    plain = frontend(name, **more)
    # ahead of time as well where a graph holds tables; convolutions on the waveform would take half a minute
    counter = CompileCounterWithBackend("aot_eager" if name.startswith("logmel") else "eager")
    compiled = torch.compile(copy.deepcopy(plain), backend=counter, fullgraph=True, dynamic=False)
    for samples in (4000, 6000, 4000):
        waveform_BS = torch.randn(2, samples, requires_grad=True)
        lengths_B = torch.tensor([samples, samples - 1700])
        found = []
        for call in (compiled, plain):
            torch.manual_seed(samples)
            frames = call(waveform_BS, lengths_B)
            (slope_BS,) = torch.autograd.grad(frames.features_BTC[frames.valid_BT].square().sum(), waveform_BS)
            found.append((frames.features_BTC[frames.valid_BT], slope_BS))
        torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert counter.frame_count == 2


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("logmel")])
def test_log_mel_frames_are_compiled_before_their_tables_are_made_and_outside_training(name: str) -> None:
    torch._dynamo.reset()
    plain = frontend(name, num_mels=37).eval()  # of which no table is there yet
    compiled = torch.compile(copy.deepcopy(plain), backend="aot_eager", fullgraph=True, dynamic=False)
    waveform_BS = torch.randn(1, 5000)
    with torch.inference_mode():
        found = compiled(waveform_BS).features_BTC
    expected = plain(waveform_BS.requires_grad_()).features_BTC
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-4)
    expected.square().sum().backward()  # the tables that inference made serve training
    assert waveform_BS.grad is not None
