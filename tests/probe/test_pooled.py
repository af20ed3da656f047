import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from ossicle.probe.pooled import Standardisation, fit_ridge, learn_mix


def test_ridge_weights_equal_scikit_learns() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 60, generator=rng), torch.randint(3, (40,), generator=rng)
    path = fit_ridge(x, y, 3)
    target = np.eye(3)[y.numpy()]
    for place, strength in ((0, 1e-3), (4, 10.0), (7, 1e4)):
        theirs = Ridge(alpha=strength * 40 / 100).fit(x.double().numpy(), target)
        np.testing.assert_allclose(path.weight_KEV[place].numpy(), theirs.coef_.T, atol=1e-5)


def test_leaving_one_out_in_closed_form_equals_refitting_without_each() -> None:
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(30, 8, generator=rng).double(), torch.randint(3, (30,), generator=rng)
    path = fit_ridge(x, y, 3)
    target = np.eye(3)[y.numpy()]
    for place, strength in ((2, 0.1), (5, 100.0)):
        refitted = []
        for row in range(30):
            rest = np.arange(30) != row
            model = Ridge(alpha=strength * 30 / 100, tol=1e-12).fit(x.numpy()[rest], target[rest])
            refitted.append(int(model.predict(x.numpy()[row : row + 1]).argmax()))
        assert path.left_out_KU[place].tolist() == refitted


def test_more_dimensions_than_utterances_still_generalise_by_a_strong_penalty() -> None:
    rng = torch.Generator().manual_seed(2)
    y = torch.arange(60) % 3
    x = torch.randn(60, 300, generator=rng)
    x[:, :3] += 4 * torch.eye(3)[y]
    path = fit_ridge(x, y, 3)
    left_out = (path.left_out_KU != y).float().mean(1)
    assert left_out.min() < 0.2
    fresh = torch.randn(600, 300, generator=rng)
    fresh_y = torch.arange(600) % 3
    fresh[:, :3] += 4 * torch.eye(3)[fresh_y]
    best = int(left_out.argmin())
    assert float((path.predict(fresh)[best] != fresh_y).float().mean()) == pytest.approx(
        float(left_out[best]), abs=0.12
    )


def test_the_mix_prefers_the_layer_that_knows() -> None:
    rng = torch.Generator().manual_seed(3)
    y = torch.arange(120) % 4
    x = torch.randn(3, 120, 20, generator=rng)
    x[1] += 2 * torch.randn(4, 20, generator=rng)[y]
    weights = learn_mix(x, y, 4)
    assert float(weights.sum()) == pytest.approx(1)
    assert int(weights.argmax()) == 1
    assert weights[1] > 0.5


def test_a_constant_column_stays_finite() -> None:
    x = torch.cat([torch.randn(10, 2, generator=torch.Generator().manual_seed(4)), torch.ones(10, 1)], dim=1)
    z = Standardisation.fit(x).apply(x)
    assert torch.isfinite(z).all()
    assert z[:, 2].abs().max() == 0
