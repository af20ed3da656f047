import math
from types import ModuleType

import pytest
import torch
from torch import nn

from ossicle.core.errors import ConfigError
from ossicle.meter.flops import count_macs
from ossicle.mixer.ligru import LiGRU
from ossicle.mixer.sligru import SLiGRU

DIM, UNITS = 8, 4
Light = LiGRU | SLiGRU
BOTH = pytest.mark.parametrize("kind", [LiGRU, SLiGRU])


def noisy(mixer: Light) -> Light:
    """The mixer with weights and running moments that leave nothing at zero or one."""
    torch.manual_seed(5)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    norm = mixer.recurrence.norm
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return mixer


def by_hand(mixer: Light, x_TD: torch.Tensor) -> torch.Tensor:
    """The papers' equations on one utterance in evaluation, frame by frame in float64."""
    part = mixer.recurrence
    norm = part.norm
    projected = x_TD @ part.input.weight.T
    projected = (projected - norm.running_mean) / torch.sqrt(norm.running_var + norm.epsilon)
    projected = projected * norm.weight + norm.bias
    units = part.recurrent.shape[-1]
    both = []
    for direction in range(2):
        gates = projected[:, direction * 2 * units : (direction + 1) * 2 * units]
        state, states = torch.zeros(units, dtype=torch.float64), {}
        for t in range(len(x_TD)) if direction == 0 else reversed(range(len(x_TD))):
            recurrent = part.recurrent[direction] @ state
            if isinstance(mixer, SLiGRU):
                centred = recurrent - recurrent.mean()
                recurrent = centred / torch.sqrt(centred.square().mean() + part.epsilon)
            update = 1 / (1 + torch.exp(-(gates[t, :units] + recurrent[:units])))
            candidate = (gates[t, units:] + recurrent[units:]).clamp(min=0)
            state = update * state + (1 - update) * candidate
            states[t] = state
        both.append(torch.stack([states[t] for t in range(len(x_TD))]))
    return torch.cat(both, -1) @ part.out.weight.T + part.out.bias


@BOTH
def test_it_equals_a_float64_loop_over_frames(kind: type[Light]) -> None:
    mixer = noisy(kind(DIM, UNITS)).double().eval()
    x_BTD = torch.randn(3, 11, DIM, dtype=torch.float64)
    for row, out_TD in enumerate(mixer(x_BTD)):
        torch.testing.assert_close(out_TD, by_hand(mixer, x_BTD[row]), atol=1e-11, rtol=1e-11)


@BOTH
def test_a_padded_row_equals_the_loop_from_its_own_end(kind: type[Light]) -> None:
    mixer = noisy(kind(DIM, UNITS)).double().eval()
    x_BTD = torch.randn(3, 11, DIM, dtype=torch.float64)
    lengths = [11, 4, 1]
    out_BTD = mixer(x_BTD, torch.arange(11) < torch.tensor(lengths)[:, None])
    for row, length in enumerate(lengths):
        expected = by_hand(mixer, x_BTD[row, :length])
        torch.testing.assert_close(out_BTD[row, :length], expected, atol=1e-11, rtol=1e-11)


@BOTH
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("direction", [0, 1])
def test_each_direction_equals_speechbrains_layer_in_states_and_gradients(
    speechbrain_rnn: ModuleType, kind: type[Light], direction: int, training: bool
) -> None:
    mixer = noisy(kind(DIM, UNITS)).train(training)
    part = mixer.recurrence
    with torch.no_grad():
        part.out.weight.copy_(torch.eye(DIM))
        part.out.bias.zero_()
    their_kind = getattr(speechbrain_rnn, kind.__name__)
    theirs = their_kind(hidden_size=UNITS, input_shape=(2, 9, DIM), bidirectional=False, re_init=False).train(training)
    layer = theirs.rnn[0]
    # Theirs has the candidates first.
    mine = direction * 2 * UNITS + torch.arange(2 * UNITS).roll(-UNITS)
    with torch.no_grad():
        layer.w.weight.copy_(part.input.weight[mine])
        layer.u.weight.copy_(part.recurrent[direction].roll(UNITS, 0))
        for key in ("weight", "bias", "running_mean", "running_var"):
            getattr(layer.norm, key).copy_(getattr(part.norm, key)[mine])
    x_BTD = torch.randn(2, 9, DIM, requires_grad=True)
    expected = theirs(x_BTD if direction == 0 else x_BTD.flip(1))[0]
    expected = expected if direction == 0 else expected.flip(1)
    got = mixer(x_BTD)[..., direction * UNITS : (direction + 1) * UNITS]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)
    grad = torch.randn_like(expected)
    ours = torch.autograd.grad(got, (x_BTD, part.input.weight, part.recurrent), grad)
    x_grad, input_grad, recurrent_grad = torch.autograd.grad(expected, (x_BTD, layer.w.weight, layer.u.weight), grad)
    torch.testing.assert_close(ours[0], x_grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ours[1][mine], input_grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ours[2][direction], recurrent_grad.roll(UNITS, 0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(part.norm.running_mean[mine], layer.norm.running_mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(part.norm.running_var[mine], layer.norm.running_var, atol=1e-5, rtol=1e-5)


@BOTH
def test_every_frame_knows_every_real_frame_of_its_row_and_no_other(kind: type[Light]) -> None:
    mixer = noisy(kind(DIM, UNITS)).double().eval()
    x_BTD = torch.randn(2, 7, DIM, dtype=torch.float64, requires_grad=True)
    out_BTD = mixer(x_BTD, torch.arange(7) < torch.tensor([[7], [5]]))
    for t in range(5):
        (grad_BTD,) = torch.autograd.grad(out_BTD[1, t].square().sum(), x_BTD, retain_graph=True)
        assert (grad_BTD[1, :5].abs().sum(-1) > 0).all()
        assert grad_BTD[0].abs().sum() == grad_BTD[1, 5:].abs().sum() == 0


@BOTH
@pytest.mark.parametrize("training", [True, False])
def test_its_gradients_pass_gradcheck_with_and_without_padding(kind: type[Light], training: bool) -> None:
    mixer = noisy(kind(4, 2)).double().train(training)
    x_BTD = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    valid_BT = torch.arange(4) < torch.tensor([[4], [2]])
    assert torch.autograd.gradcheck(mixer, (x_BTD,))
    assert torch.autograd.gradcheck(lambda x: mixer(x, valid_BT)[valid_BT], (x_BTD,))


@BOTH
def test_its_parameters_and_products_are_those_of_the_formula(kind: type[Light]) -> None:
    dim, units, frames = 24, 10, 50
    with torch.device("meta"):
        mixer = kind(dim, units).eval()
        x_BTD = torch.empty(3, frames, dim)
    products = dim * 4 * units + 2 * 2 * units * units + 2 * units * dim
    assert sum(p.numel() for p in mixer.parameters()) == products + 2 * 4 * units + dim
    assert count_macs(lambda: mixer(x_BTD)) == 3 * frames * products
    assert kind(dim).recurrence.recurrent.shape == (2, dim, dim // 2)


@BOTH
def test_recurrent_weights_begin_orthogonal_gate_by_gate(kind: type[Light]) -> None:
    for weights_UU in kind(DIM, UNITS).recurrence.recurrent.flatten(0, 1).split(UNITS):
        torch.testing.assert_close(weights_UU @ weights_UU.T, torch.eye(UNITS), atol=1e-5, rtol=1e-5)


@BOTH
def test_a_width_that_leaves_no_unit_is_refused(kind: type[Light]) -> None:
    with pytest.raises(ConfigError, match="units=0 leaves no unit"):
        kind(DIM, 0)


def test_states_of_light_units_have_no_bound() -> None:
    mixer = LiGRU(DIM, UNITS).eval()
    with torch.no_grad():
        mixer.recurrence.recurrent.mul_(0).add_(1.0)
        mixer.recurrence.recurrent[:, :UNITS].mul_(-1)
    out_BTD = mixer(torch.randn(1, 200, DIM))
    assert out_BTD.abs().max() > math.exp(20) or not out_BTD.isfinite().all()


def test_states_of_stabilised_units_stay_within_what_a_frame_brings_and_the_norms_largest_entry() -> None:
    mixer = SLiGRU(DIM, UNITS).eval()
    part = mixer.recurrence
    with torch.no_grad():
        part.recurrent.mul_(0).add_(1.0)
        part.recurrent[:, :UNITS].mul_(-1)
        part.out.weight.copy_(torch.eye(DIM))
    x_BTD = torch.randn(1, 200, DIM)
    bound = part.norm(part.input(x_BTD)).max() + math.sqrt(2 * UNITS)
    assert mixer(x_BTD).max() <= bound


@BOTH
def test_input_weights_begin_within_the_bound_of_xavier_over_both_directions(kind: type[Light]) -> None:
    torch.manual_seed(0)
    bound = math.sqrt(6 / (64 + 4 * 32))
    assert kind(64, 32).recurrence.input.weight.abs().max().item() == pytest.approx(bound, rel=0.02)


@BOTH
def test_in_training_moments_are_those_of_real_frames_whatever_stands_in_padding(kind: type[Light]) -> None:
    valid_BT = torch.arange(9) < torch.tensor([[9], [4]])
    x_BTD, outputs, means = torch.randn(2, 9, DIM), [], []
    for silence in (0.0, 1e3):
        torch.manual_seed(0)
        mixer = kind(DIM, UNITS, momentum=1.0).train()
        outputs.append(mixer(x_BTD.masked_fill(~valid_BT[..., None], silence), valid_BT)[valid_BT])
        means.append(mixer.recurrence.norm.running_mean)
    assert torch.equal(*outputs)
    torch.testing.assert_close(means[0], mixer.recurrence.input(x_BTD[valid_BT]).mean(0))
    assert torch.equal(*means)


def test_the_layer_norm_adds_the_epsilon_that_it_is_given() -> None:
    mixer = noisy(SLiGRU(DIM, UNITS, epsilon=0.3)).double().eval()
    assert mixer.recurrence.epsilon == 0.3
    x_TD = torch.randn(11, DIM, dtype=torch.float64)
    torch.testing.assert_close(mixer(x_TD[None])[0], by_hand(mixer, x_TD), atol=1e-10, rtol=1e-10)
