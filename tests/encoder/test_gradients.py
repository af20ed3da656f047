"""What each encoder's frames hear, and whether its gradients are derivatives: walked over conf/encoder, in float64."""

import inspect
from functools import partial

import pytest
import torch
from torch.func import functional_call

from ossicle.encoder.base import Encoder
from ossicle.mixer.attention import Attention
from tests.encoder.test_contract import NAMES, encoder, frames_out

TINY = {"dim": 8, "num_layers": 2, "ffn_dim": 12, "gate_dim": 12, "kernel": 3, "position_kernel": 4}
STAGES = [
    {"convolutions": [[8, 3, 2]], "num_layers": 1, "ffn_dim": 8},
    {"convolutions": [[8, 3, 2]], "num_layers": 1, "ffn_dim": 8},
]
SIZES = {"dims": [8], "layers_by_group": [1, 1, 1], "factors": [2], "depths": [2], "input_dim": 6, "stages": STAGES}
"""What is set for those that take it."""
ATTENTION = partial(Attention, num_heads=2, dropout=0.0)


def tiny(name: str) -> Encoder:
    """One in evaluation and float64, with weights that leave nothing at zero."""
    known = inspect.signature(type(encoder(name))).parameters
    built = encoder(name, ATTENTION, **{key: value for key, value in (TINY | SIZES).items() if key in known})
    torch.manual_seed(1)
    for parameter in built.parameters():
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built.double().eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_hears_its_utterance_to_both_sides_or_what_came_before_it_alone(name: str) -> None:
    built = tiny(name)
    frames, length = 18, 13
    x_BTD = torch.randn(2, frames, built.input_dim, dtype=torch.float64, requires_grad=True)
    valid_BT = torch.arange(frames) < torch.tensor([[frames], [length]])
    out_BTD = built(x_BTD, valid_BT).last_BTD
    for frame in range(frames_out(built, length)):
        direction_D = torch.randn(built.dim, dtype=torch.float64)  # the sum of what a norm made would not move
        (grad_BTD,) = torch.autograd.grad(out_BTD[1, frame] @ direction_D, x_BTD, retain_graph=True)
        heard_T = (grad_BTD[1] != 0).any(-1)
        assert not grad_BTD[0].any(), frame
        assert not heard_T[length:].any(), frame
        if built.causal:
            assert not heard_T[frame + 1 :].any(), frame
            assert heard_T[max(0, frame - 2) : frame + 1].all(), frame
        else:
            assert heard_T[:length].all(), frame


@pytest.mark.parametrize("name", NAMES)
def test_its_gradients_pass_gradcheck_with_padding(name: str) -> None:
    built = tiny(name)
    x_BTD = torch.randn(2, 9, built.input_dim, dtype=torch.float64, requires_grad=True)
    valid_BT = torch.arange(9) < torch.tensor([[9], [5]])
    parameters = dict(built.named_parameters())

    def encoded(x_BTD: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = functional_call(built, dict(zip(parameters, values, strict=True)), (x_BTD, valid_BT))
        return output.last_BTD[0], output.last_BTD[1, : frames_out(built, 5)]

    values = [value.detach().clone().requires_grad_() for value in parameters.values()]
    assert torch.autograd.gradcheck(encoded, (x_BTD, *values), fast_mode=True)
