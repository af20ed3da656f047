import torch
from torch import nn
from torch.nn import functional

from ossicle.layer.recompute import recomputed


def test_gradients_are_the_same_to_the_bit_with_the_same_dropout_and_less_is_kept() -> None:
    linear = nn.Linear(8, 8)
    x = torch.randn(3, 8)
    kept: list[int] = []

    def call(x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(functional.gelu(linear(x)), 0.5)

    found = []
    for run in (call, recomputed(call)):
        torch.manual_seed(1)
        tensors: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, into=tensors: into.append(t) or t, lambda t: t):
            out = run(x)
        kept.append(sum(tensor.numel() for tensor in tensors))
        torch.rand(5)  # what is drawn meanwhile must not change what is made again
        found.append((out, *torch.autograd.grad(out.square().sum(), list(linear.parameters()))))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert kept[1] < kept[0]
