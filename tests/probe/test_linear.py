import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ossicle.probe.linear import (
    HeadTraining,
    LinearHead,
    MixedHead,
    Whitening,
    discriminant,
    mix,
    normalise,
    train_head,
    train_mixed_head,
)


def gaussian_classes(num: int, dim: int, classes: int, distance: float, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99)) * distance
    y = torch.randint(classes, (num,), generator=rng)
    # badly conditioned on purpose: scales over four decades and strong correlations
    shear = torch.eye(dim) + 0.9 * torch.ones(dim, dim)
    scales = torch.logspace(-2, 2, dim)
    return ((means[y] + torch.randn(num, dim, generator=rng)) @ shear) * scales + 7, y


def last_head(x: Tensor, y: Tensor, classes: int, training: HeadTraining | None = None) -> LinearHead:
    training = training or HeadTraining()
    whitening = Whitening.fit(x, y, classes, training.shrinkage)
    return list(train_head(whitening.apply(x), y, classes, whitening=whitening, training=training, seed=0))[-1]


def error(head: LinearHead, x: Tensor, y: Tensor) -> float:
    return float((head.predict(x) != y).float().mean())


def test_a_head_reaches_the_bayes_error_of_two_gaussians_however_they_are_scaled() -> None:
    x, y = gaussian_classes(20_000, 8, 2, 0.4, seed=0)
    test_x, test_y = gaussian_classes(20_000, 8, 2, 0.4, seed=1)
    means = torch.randn(2, 8, generator=torch.Generator().manual_seed(99)) * 0.4
    half = float((means[0] - means[1]).norm()) / 2
    bayes = 0.5 * (1 - torch.erf(torch.tensor(half / 2**0.5))).item()
    assert 0.05 < bayes < 0.3
    assert error(last_head(x, y, 2), test_x, test_y) == pytest.approx(bayes, abs=0.01)


def test_a_head_on_noise_is_at_chance() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(8_000, 16, generator=rng), torch.randint(4, (8_000,), generator=rng)
    test_x, test_y = torch.randn(8_000, 16, generator=rng), torch.randint(4, (8_000,), generator=rng)
    assert abs(error(last_head(x, y, 4), test_x, test_y) - 0.75) < 4 * (0.75 * 0.25 / 8_000) ** 0.5


def test_a_head_errs_no_more_than_scikit_learns_logistic_regression() -> None:
    x, y = gaussian_classes(4_000, 12, 6, 0.5, seed=2)
    test_x, test_y = gaussian_classes(4_000, 12, 6, 0.5, seed=3)
    scale = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(max_iter=2_000).fit(scale.numpy(), y.numpy())
    their_error = 1 - theirs.score(((test_x - x.mean(0)) / x.std(0)).numpy(), test_y.numpy())
    assert their_error > 0.1
    assert error(last_head(x, y, 6, HeadTraining(epochs=8)), test_x, test_y) == pytest.approx(their_error, abs=0.012)


def test_training_mends_a_discriminant_that_outliers_mislead() -> None:
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(2, (6_000,), generator=rng)
    x = 0.3 * torch.randn(6_000, 2, generator=rng)
    x[:, 0] += 1 - 2 * y
    x[(y == 0) & (torch.rand(6_000, generator=rng) < 0.1), 0] = 30.0
    whitening = Whitening.fit(x, y, 2, 1e-2)
    training = HeadTraining(epochs=6, batch_frames=64, learning_rate=0.1)
    heads = list(train_head(whitening.apply(x), y, 2, whitening=whitening, training=training, seed=0))
    assert len(heads) == 7
    assert error(heads[0], x, y) > 0.3
    assert error(heads[-1], x, y) < 0.02


def test_whitened_frames_have_unit_covariance_within_classes() -> None:
    x, y = gaussian_classes(20_000, 6, 3, 1.0, seed=4)
    z = Whitening.fit(x, y, 3, 1e-6).apply(x)
    means = torch.stack([z[y == cls].mean(0) for cls in range(3)])
    within = np.cov((z - means[y]).T.numpy())
    np.testing.assert_allclose(within, np.eye(6), atol=0.02)


def test_constant_dimensions_do_no_harm() -> None:
    x, y = gaussian_classes(2_000, 6, 2, 2.0, seed=5)
    x = torch.cat([x, torch.full((2_000, 2), 5.0), x[:, :1]], dim=1)
    assert error(last_head(x, y, 2), x, y) < 0.05


def test_the_discriminant_of_a_class_without_frames_is_finite_and_never_wins() -> None:
    x, y = gaussian_classes(500, 4, 2, 1.0, seed=6)
    weight, bias = discriminant(Whitening.fit(x, y, 3, 1e-2).apply(x), y, 3)
    assert torch.isfinite(weight).all()
    assert bias[2] < bias[:2].min()


def test_the_weighted_sum_finds_the_layer_that_knows() -> None:
    rng = torch.Generator().manual_seed(7)
    y = torch.randint(4, (6_000,), generator=rng)
    x = torch.randn(3, 6_000, 16, generator=rng)
    x[2] += 2 * torch.randn(4, 16, generator=rng)[y]
    x = normalise(x)
    whitening = Whitening.fit(mix(x, torch.full((3,), 1 / 3)), y, 4, 1e-2)
    training = HeadTraining(epochs=12)
    heads = list(train_mixed_head(x, y, torch.arange(6_000), 4, whitening=whitening, training=training, seed=0))
    assert heads[0].layer_weights_L.tolist() == pytest.approx([1 / 3] * 3)
    assert heads[-1].layer_weights_L[2] > 0.8
    assert float((heads[-1].predict(x) != y).float().mean()) < float((heads[0].predict(x) != y).float().mean())


def test_the_same_seed_gives_the_same_head_and_another_seed_another() -> None:
    x, y = gaussian_classes(3_000, 5, 3, 0.5, seed=8)
    whitening = Whitening.fit(x, y, 3, 1e-2)
    heads = [
        list(train_head(whitening.apply(x), y, 3, whitening=whitening, training=HeadTraining(), seed=seed))[-1]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0].weight_DV, heads[1].weight_DV)
    assert not torch.equal(heads[0].weight_DV, heads[2].weight_DV)


def test_the_discriminant_is_that_of_classes_with_their_priors_and_a_covariance_of_one() -> None:
    draws = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 90 + [1] * 10)
    z = torch.randn(100, 3, generator=draws) + 2 * y[:, None]
    weight_DV, bias_V = discriminant(z, y, 2)
    # log p(y) + log N(z; mean, 1) of the two classes, but for what they share; half a frame is added to each
    logits = torch.stack(
        [
            math.log((count + 0.5) / 101) - (z - z[y == cls].mean(0)).square().sum(1) / 2
            for cls, count in enumerate((90, 10))
        ],
        1,
    )
    found = z @ weight_DV + bias_V
    torch.testing.assert_close(found[:, 1] - found[:, 0], logits[:, 1] - logits[:, 0], atol=1e-4, rtol=1e-4)


def test_a_mixed_head_does_not_care_for_the_scale_of_a_layer() -> None:
    draws = torch.Generator().manual_seed(1)
    x_LPD = torch.randn(2, 50, 6, generator=draws)
    plain = LinearHead(torch.randn(6, 4, generator=draws), torch.zeros(4))
    head = MixedHead(torch.tensor([0.5, 0.5]), plain)
    scaled = x_LPD * torch.tensor([1.0, 100.0])[:, None, None]
    assert torch.equal(head.predict(x_LPD), head.predict(scaled))
