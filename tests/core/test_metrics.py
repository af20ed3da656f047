import math

import pytest
import torch

from ossicle.core.metrics import CodeUse, Mean, flatten, unflatten


def test_means_add_by_total_and_count() -> None:
    both = Mean(torch.tensor(6.0), torch.tensor(2.0)) + Mean(torch.tensor(0.0), torch.tensor(4.0))
    assert both.read("x") == {"x": 1.0}


def test_a_mean_of_nothing_is_not_reported() -> None:
    assert Mean(torch.tensor(0.0), torch.tensor(0.0)).read("x") == {}


def test_code_use_reads_perplexity_use_and_the_top_share() -> None:
    values = CodeUse(torch.tensor([2.0, 2.0, 0.0, 0.0])).read("codes")
    assert values["codes_perplexity"] == pytest.approx(2.0)
    assert values["codes_used"] == 0.5
    assert values["codes_top"] == 0.5


def test_code_use_averages_over_groups() -> None:
    values = CodeUse(torch.tensor([[1.0, 1.0], [2.0, 0.0]])).read("codes")
    assert values["codes_perplexity"] == pytest.approx((2.0 + 1.0) / 2)
    assert values["codes_least_perplexity"] == pytest.approx(1.0)
    assert values["codes_top"] == pytest.approx((0.5 + 1.0) / 2)  # what guessing each group's own most frequent scores


def test_sums_survive_a_trip_through_one_vector() -> None:
    metrics = {"b": Mean(torch.tensor(3.0), torch.tensor(4.0)), "a": CodeUse(torch.arange(6.0).reshape(2, 3))}
    vector = flatten(metrics)
    assert vector.shape == (8,)
    back = unflatten(metrics, 2 * vector)
    assert back["b"].read("b") == {"b": 0.75}
    assert torch.equal(back["a"].tensors()[0], 2 * torch.arange(6.0).reshape(2, 3).double())


def test_metrics_hold_no_graph() -> None:
    loss = torch.tensor(1.0, requires_grad=True)
    assert not any(t.requires_grad for t in Mean(loss, loss).tensors())
    assert math.isfinite(Mean(loss, loss).read("x")["x"])
