import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ossicle.core.errors import ConfigError
from ossicle.meter.flops import count_macs
from ossicle.mixer.gru import GRU
from ossicle.mixer.lstm import LSTM

DIM, UNITS = 8, 4
Recurrent = GRU | LSTM
BOTH = pytest.mark.parametrize("kind", [GRU, LSTM])


def pair(kind: type[Recurrent]) -> tuple[Recurrent, nn.GRU | nn.LSTM]:
    """The mixer with an output that is the states themselves, and torch's layer with its weights; in float64."""
    torch.manual_seed(5)
    torchs = nn.GRU if kind is GRU else nn.LSTM
    mixer, theirs = kind(DIM, UNITS).double(), torchs(DIM, UNITS, batch_first=True, bidirectional=True).double()
    with torch.no_grad():
        mixer.recurrence.out.weight.copy_(torch.eye(DIM))
    theirs.load_state_dict(mixer.recurrence.rnn.state_dict())
    return mixer, theirs


def by_hand(theirs: nn.GRU | nn.LSTM, suffix: str, x_TD: torch.Tensor) -> torch.Tensor:
    """One direction's states by torch's equations, frame by frame."""
    w, u, bias, recurrent_bias = (
        getattr(theirs, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    state = memory = torch.zeros(UNITS, dtype=torch.float64)
    states = []
    for x_D in x_TD:
        brought, kept = w @ x_D + bias, u @ state + recurrent_bias
        if isinstance(theirs, nn.GRU):
            reset, update = (brought[: 2 * UNITS] + kept[: 2 * UNITS]).sigmoid().chunk(2)
            candidate = torch.tanh(brought[2 * UNITS :] + reset * kept[2 * UNITS :])
            state = (1 - update) * candidate + update * state
        else:
            take, keep, new, give = (brought + kept).chunk(4)
            memory = keep.sigmoid() * memory + take.sigmoid() * new.tanh()
            state = give.sigmoid() * memory.tanh()
        states.append(state)
    return torch.stack(states)


@BOTH
def test_it_equals_a_float64_loop_over_frames(kind: type[Recurrent]) -> None:
    mixer, theirs = pair(kind)
    x_TD = torch.randn(9, DIM, dtype=torch.float64)
    expected = torch.cat([by_hand(theirs, "", x_TD), by_hand(theirs, "_reverse", x_TD.flip(0)).flip(0)], -1)
    torch.testing.assert_close(mixer(x_TD[None])[0], expected, atol=1e-12, rtol=1e-12)


@BOTH
def test_padded_rows_equal_torchs_layer_on_packed_ones_in_outputs_and_gradients(kind: type[Recurrent]) -> None:
    mixer, theirs = pair(kind)
    lengths = torch.tensor([11, 4, 1])
    valid_BT = torch.arange(11) < lengths[:, None]
    x_BTD = torch.randn(3, 11, DIM, dtype=torch.float64, requires_grad=True)
    packed = pack_padded_sequence(x_BTD, lengths, batch_first=True)
    expected = pad_packed_sequence(theirs(packed)[0], batch_first=True)[0][valid_BT]
    got = mixer(x_BTD, valid_BT)[valid_BT]
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    grad = torch.randn_like(expected)
    ours = torch.autograd.grad(got, (x_BTD, *mixer.recurrence.rnn.parameters()), grad)
    for mine, its in zip(ours, torch.autograd.grad(expected, (x_BTD, *theirs.parameters()), grad), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-12, rtol=1e-12)


@BOTH
def test_every_frame_knows_every_real_frame_of_its_row_and_no_other(kind: type[Recurrent]) -> None:
    mixer, _ = pair(kind)
    x_BTD = torch.randn(2, 7, DIM, dtype=torch.float64, requires_grad=True)
    out_BTD = mixer(x_BTD, torch.arange(7) < torch.tensor([[7], [5]]))
    for t in range(5):
        (grad_BTD,) = torch.autograd.grad(out_BTD[1, t].sum(), x_BTD, retain_graph=True)
        assert (grad_BTD[1, :5].abs().sum(-1) > 0).all()
        assert grad_BTD[0].abs().sum() == grad_BTD[1, 5:].abs().sum() == 0


@BOTH
def test_its_gradients_pass_gradcheck(kind: type[Recurrent]) -> None:
    mixer = kind(4, 2).double()
    x_BTD = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


@pytest.mark.parametrize("units", [10, 20])  # less than half the width, and more
@pytest.mark.parametrize(("kind", "matrices"), [(GRU, 3), (LSTM, 4)])
def test_its_parameters_and_products_are_those_of_the_formula(kind: type[Recurrent], matrices: int, units: int) -> None:
    dim, frames = 24, 50
    with torch.device("meta"):
        mixer = kind(dim, units).eval()
        x_BTD = torch.empty(3, frames, dim)
    products = 2 * matrices * units * (dim + units) + 2 * units * dim
    assert sum(p.numel() for p in mixer.parameters()) == products + 2 * 2 * matrices * units + dim
    assert count_macs(lambda: mixer(x_BTD)) == 3 * frames * products
    assert kind(dim).recurrence.rnn.hidden_size == dim // 2


@BOTH
def test_recurrent_weights_begin_orthogonal_gate_by_gate(kind: type[Recurrent]) -> None:
    rnn = kind(DIM, UNITS).recurrence.rnn
    for key in ("weight_hh_l0", "weight_hh_l0_reverse"):
        for weights_UU in getattr(rnn, key).split(UNITS):
            torch.testing.assert_close(weights_UU @ weights_UU.T, torch.eye(UNITS), atol=1e-5, rtol=1e-5)


@BOTH
def test_a_width_that_leaves_no_unit_is_refused(kind: type[Recurrent]) -> None:
    with pytest.raises(ConfigError, match="units=None leaves no unit to a direction of width 1"):
        kind(1)
