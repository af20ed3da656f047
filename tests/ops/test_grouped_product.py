import pytest
import torch

from ossicle.meter.flops import count_macs
from ossicle.ops.grouped_product import grouped_product


def drawn(*shape: int) -> torch.Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("rest", [(7,), (2, 5), (0,)])
def test_it_is_the_product_with_the_dense_matrix_and_passes_gradcheck(rest: tuple[int, ...]) -> None:
    x, weight = drawn(*rest, 6), drawn(3, 2, 4)
    torch.testing.assert_close(grouped_product(x, weight), x @ torch.block_diag(*weight.unbind()))
    assert torch.autograd.gradcheck(grouped_product, (x, weight))


def test_frames_may_lie_anyhow() -> None:
    x, weight = drawn(6, 5).mT, drawn(3, 2, 4)
    torch.testing.assert_close(grouped_product(x, weight), grouped_product(x.contiguous(), weight))
    grad = torch.randn(12, 5, dtype=torch.float64).mT
    pairs = [torch.autograd.grad(grouped_product(x, weight), (x, weight), g) for g in (grad, grad.contiguous())]
    torch.testing.assert_close(*pairs)


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    x, weight = drawn(5, 6).detach(), drawn(3, 2, 4)
    grouped_product(x, weight).sum().backward()
    assert weight.grad is not None
    assert x.grad is None


def test_it_is_computed_in_autocasts_type() -> None:
    x, weight = drawn(2, 5, 6).float(), drawn(3, 2, 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = grouped_product(x, weight)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out.float().sum(), (x, weight))
    assert [grad.dtype for grad in grads] == [torch.float32] * 2
    exact = torch.autograd.grad(grouped_product(x, weight).sum(), (x, weight))
    torch.testing.assert_close(grads, exact, atol=5e-2, rtol=5e-2)


def test_compiled_it_is_the_same_without_a_break() -> None:
    x, weight = drawn(2, 5, 6), drawn(3, 2, 4)
    built = torch.compile(grouped_product, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(built(x, weight), grouped_product(x, weight))


def test_its_products_are_counted() -> None:
    with torch.device("meta"):
        assert count_macs(lambda: grouped_product(torch.empty(2, 50, 6), torch.empty(3, 2, 4))) == 2 * 50 * 3 * 2 * 4
