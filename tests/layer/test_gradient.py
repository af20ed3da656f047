import pytest
import torch

from ossicle.layer.gradient import GradientScale


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 2.0])
def test_values_pass_unchanged_and_gradients_scaled(scale: float) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    weight = torch.randn(4, 3)
    w = torch.ones(3, requires_grad=True)
    out = GradientScale(scale)(x)
    assert torch.equal(out, x)
    (out * weight * w).sum().backward()
    torch.testing.assert_close(torch.zeros_like(x) if x.grad is None else x.grad, scale * weight)


def test_it_compiles_as_one_graph() -> None:
    x = torch.randn(4, requires_grad=True)
    torch.compile(GradientScale(0.1), fullgraph=True, backend="aot_eager")(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((4,), 0.1))
