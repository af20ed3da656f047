import math

import pytest
import torch
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from ossicle.core.errors import ConfigError
from ossicle.layer.selective_state_space import SelectiveStateSpace, fused_scan
from ossicle.meter.flops import count_macs
from ossicle.mixer.mamba import Mamba
from tests.mixer.leaks import everything, known, noisy
from tests.mixer.loops import check_padded_rows, state_space

DIM = 8


def theirs_of(part: SelectiveStateSpace, dim: int) -> MambaMixer:
    """transformers' layer with a direction's weights, in float64."""
    config = MambaConfig(hidden_size=dim, state_size=part.state_dim, conv_kernel=part.conv1d.kernel_size[0])
    theirs = MambaMixer(config, layer_idx=0).double().eval()
    theirs.load_state_dict(part.state_dict())
    return theirs


@pytest.mark.parametrize("frames", [1, 2, 37, 300])
def test_each_direction_is_transformers_layer_in_outputs_and_gradients(frames: int) -> None:
    mixer = noisy(Mamba(DIM, state_dim=4, kernel=3), std=0.2)
    assert isinstance(mixer, Mamba)
    there, back = theirs_of(mixer.there, DIM), theirs_of(mixer.back, DIM)
    x_BTD = torch.randn(2, frames, DIM, dtype=torch.float64, requires_grad=True)
    got = mixer(x_BTD)
    expected = there(x_BTD) + back(x_BTD.flip(1)).flip(1)
    # transformers computes the rates in single precision.
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    grad = torch.randn_like(got)
    names = [name for name, _ in mixer.there.named_parameters()]
    ours = torch.autograd.grad(got, (x_BTD, *mixer.there.parameters(), *mixer.back.parameters()), grad)
    weights = [dict(twin.named_parameters())[name] for twin in (there, back) for name in names]
    for mine, its in zip(ours, torch.autograd.grad(expected, (x_BTD, *weights), grad), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("states", "kernel", "expand"), [(4, 3, 2), (2, 1, 1), (1, 5, 3)])
def test_padded_rows_equal_a_float64_loop_over_each_alone(states: int, kernel: int, expand: int) -> None:
    mixer = noisy(Mamba(DIM, state_dim=states, kernel=kernel, expand=expand))
    assert isinstance(mixer, Mamba)
    check_padded_rows(
        mixer, DIM, lambda x_TD: state_space(mixer.there, x_TD) + state_space(mixer.back, x_TD[::-1])[::-1]
    )


def test_every_frame_knows_every_real_frame_of_its_row_and_no_other() -> None:
    assert torch.equal(known(noisy(Mamba(DIM, state_dim=2)), 7, DIM, [7, 5]), everything(7, 5))


def test_one_direction_knows_nothing_of_later_frames() -> None:
    part = SelectiveStateSpace(DIM).double()
    x_BTD = torch.randn(1, 9, DIM, dtype=torch.float64, requires_grad=True)
    (grad_BTD,) = torch.autograd.grad(part(x_BTD)[0, 4].square().sum(), x_BTD)
    assert (grad_BTD[0, :5].abs().sum(-1) > 0).all()
    assert grad_BTD[0, 5:].abs().sum() == 0


def test_its_gradients_pass_gradcheck() -> None:
    mixer = noisy(Mamba(4, state_dim=2, kernel=2))
    x_BTD = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    valid_BT = torch.arange(4) < torch.tensor([[4], [2]])
    assert torch.autograd.gradcheck(lambda x: mixer(x, valid_BT)[valid_BT], (x_BTD,))


def test_its_parameters_and_products_are_those_of_the_formula() -> None:
    dim, states, kernel, expand, frames = 24, 5, 3, 3, 700
    with torch.device("meta"):
        mixer = Mamba(dim, state_dim=states, kernel=kernel, expand=expand).eval()
        x_BTD = torch.empty(2, frames, dim)
    inner, rank = expand * dim, 2
    maps = 3 * dim * inner + inner * (rank + 2 * states) + rank * inner
    rest = inner * kernel + inner + inner + inner * states + inner
    assert sum(p.numel() for p in mixer.parameters()) == 2 * (maps + rest)
    # The causal convolution is computed over its padding too; states are updated by elementwise work, not counted.
    convolved = (frames + kernel - 1) * inner * kernel
    assert count_macs(lambda: mixer(x_BTD)) == 2 * 2 * (frames * (maps + inner * states) + convolved)


def test_without_its_kernel_the_packages_own_scan_runs_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    fused_scan.cache_clear()
    with caplog.at_level("INFO"):
        assert fused_scan("cpu") is None
    assert "runs as this package's operation: mamba-ssm's kernel needs a CUDA device" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mamba_ssms_kernel_equals_the_packages_own() -> None:
    pytest.importorskip("mamba_ssm", reason="mamba-ssm, which is built from source, is not installed")
    mixer = noisy(Mamba(64), std=0.1).float()
    x_BTD = torch.randn(2, 300, 64)
    torch.testing.assert_close(mixer.cuda()(x_BTD.cuda()).cpu(), mixer.cpu()(x_BTD), atol=1e-4, rtol=1e-3)


def test_numbers_that_leave_nothing_to_compute_are_refused() -> None:
    with pytest.raises(ConfigError, match="state_dim=0 leaves nothing"):
        Mamba(DIM, state_dim=0)


def test_it_begins_as_the_paper_has_it() -> None:
    torch.manual_seed(0)
    part = SelectiveStateSpace(64, state_dim=5)  # steps: section 3.6; rates: S4D-real's, -1 to -N
    steps_E = torch.nn.functional.softplus(part.dt_proj.bias.detach())
    assert steps_E.min() == pytest.approx(1e-3, rel=0.5)
    assert steps_E.max() == pytest.approx(1e-1, rel=0.5)
    assert steps_E.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.4)
    torch.testing.assert_close(part.A_log.exp(), torch.arange(1.0, 6.0).expand(128, 5))
    assert (part.D == 1).all()
    assert part.rank == 4
    assert part.dt_proj.weight.abs().max().item() == pytest.approx(0.5, rel=0.05)  # one over the root of the rank


def test_the_rank_of_steps_is_a_sixteenth_of_the_width_rounded_up() -> None:
    assert [SelectiveStateSpace(dim).rank for dim in (1, 16, 17, 768)] == [1, 1, 2, 48]
