from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ossicle.layer.mask import EmbeddingMask, Mask, NoiseMask

MASKED = torch.tensor([[0, 3, 4], [1, 2, 9]])


class Embedder(nn.Module):
    """What a mask sees of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(5, 7)
        self.embedded_from: list[Tensor] = []

    def embed(self, features_BTC: Tensor) -> Tensor:
        self.embedded_from.append(features_BTC)
        return self.project(features_BTC)


def hidden() -> Tensor:
    flags = torch.zeros(2, 10, dtype=torch.bool)
    for row in range(2):
        flags[row, MASKED[row]] = True
    return flags


def apply(mask: Mask, model: Embedder, features: Tensor, seed: int = 0) -> Tensor:
    return mask(model.embed, features, MASKED, torch.Generator().manual_seed(seed))


def test_the_learned_vector_stands_at_masked_frames_and_nowhere_else() -> None:
    model, mask, features = Embedder(), EmbeddingMask(7, 5), torch.randn(2, 10, 5)
    out = apply(mask, model, features)
    assert torch.equal(out[hidden()], mask.vector_D.expand(6, 7))
    assert torch.equal(out[~hidden()], model.project(features)[~hidden()])


def test_the_learned_vector_gets_the_sum_of_its_frames_gradients_and_hidden_features_none() -> None:
    model, mask = Embedder(), EmbeddingMask(7, 5)
    features = torch.randn(2, 10, 5, requires_grad=True)
    weight = torch.randn(2, 10, 7)
    (apply(mask, model, features) * weight).sum().backward()
    assert mask.vector_D.grad is not None
    assert features.grad is not None
    torch.testing.assert_close(mask.vector_D.grad, weight[hidden()].sum(0))
    assert not features.grad[hidden()].any()
    assert features.grad[~hidden()].any(-1).all()


def test_noise_leaves_hidden_features_without_gradient_and_the_others_with_theirs() -> None:
    model, mask = Embedder(), NoiseMask(7, 5, std=0.1)
    features = torch.randn(2, 10, 5, requires_grad=True)
    weight = torch.randn(2, 10, 7)
    (apply(mask, model, features) * weight).sum().backward()
    assert features.grad is not None
    assert not features.grad[hidden()].any()
    torch.testing.assert_close(features.grad[~hidden()], (weight @ model.project.weight)[~hidden()])


def test_the_learned_vector_starts_uniform() -> None:
    torch.manual_seed(0)
    vector = EmbeddingMask(4000, 5).vector_D.detach()
    assert 0 <= float(vector.min()) < 0.01
    assert 0.99 < float(vector.max()) <= 1
    assert float(vector.mean()) == pytest.approx(0.5, abs=0.03)


def test_noise_stands_at_masked_features_and_leaves_its_input_alone() -> None:
    model, mask, features = Embedder(), NoiseMask(7, 5, std=0.1), torch.randn(2, 10, 5)
    before = features.clone()
    apply(mask, model, features)
    seen = model.embedded_from[0]
    assert torch.equal(features, before)
    assert torch.equal(seen[~hidden()], features[~hidden()])
    assert not (seen[hidden()] == features[hidden()]).any()
    assert not list(mask.parameters())


def test_noise_has_the_stated_deviation_and_is_a_function_of_its_generator() -> None:
    mask, model = NoiseMask(7, 5, std=0.1), Embedder()
    masked = torch.arange(2000).expand(4, -1)
    features = torch.full((4, 2000, 5), 9.0)
    for seed in (0, 0, 1):
        mask(model.embed, features, masked, torch.Generator().manual_seed(seed))
    first, again, other = model.embedded_from
    assert float(first.std()) == pytest.approx(0.1, rel=0.02)
    assert float(first.mean()) == pytest.approx(0.0, abs=0.003)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("make", [EmbeddingMask, NoiseMask])
def test_masks_keep_bf16_frames_bf16(make: Callable[[int, int], Mask]) -> None:
    out = apply(make(7, 5), Embedder().bfloat16(), torch.randn(2, 10, 5).bfloat16())
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
