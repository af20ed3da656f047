import pytest
import torch
from torch.nn import functional

from ossicle.layer.projection import MLPProjection


def test_the_mlp_is_two_maps_around_a_norm_over_all_frames_in_float64() -> None:
    torch.manual_seed(0)
    project = MLPProjection(5, 3, hidden_dim=7).double()
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    hidden = x.reshape(8, 5) @ project.enter.weight.t()
    centred = hidden - hidden.mean(0)
    normed = centred / (centred.square().mean(0) + project.norm.eps).sqrt()
    expected = normed.clamp(min=0) @ project.leave.weight.t() + project.leave.bias
    torch.testing.assert_close(project(x), expected.reshape(2, 4, 3))


def test_in_evaluation_a_frame_depends_on_no_other() -> None:
    project = MLPProjection(5, 3, hidden_dim=7)
    project(torch.randn(2, 4, 5))
    project.eval()
    x = torch.randn(2, 4, 5)
    torch.testing.assert_close(project(x)[:1, :1], project(x[:1, :1]))
    assert functional.mse_loss(project(x)[0, 0], project(x)[0, 1]) > 0


def test_every_parameter_gets_a_gradient() -> None:
    project = MLPProjection(5, 3, hidden_dim=7)
    project(torch.randn(2, 4, 5)).square().sum().backward()
    for name, parameter in project.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert sum(p.numel() for p in project.parameters()) == pytest.approx(5 * 7 + 2 * 7 + 7 * 3 + 3)
