import math

import pytest
import torch
from transformers import get_scheduler

from ossicle.core.errors import ConfigError
from ossicle.optim.schedules import Cosine, Noam, OneCycle, Polynomial, Schedule, TriStage

STEPS, WARMUP = 40, 7


def rates_of_transformers(name: str, steps: int, **specific: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=WARMUP, num_training_steps=steps, scheduler_specific_kwargs=specific
    )
    rates = []
    for _ in range(steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "name", "specific"),
    [
        (Polynomial(STEPS, warmup_steps=WARMUP), "linear", {}),
        (Polynomial(STEPS, warmup_steps=WARMUP, power=2.0, end=0.1), "polynomial", {"power": 2.0, "lr_end": 0.1}),
        (Cosine(STEPS, warmup_steps=WARMUP), "cosine", {}),
        (Cosine(STEPS, warmup_steps=WARMUP, end=0.2), "cosine_with_min_lr", {"min_lr_rate": 0.2}),
        (Noam(STEPS, warmup_steps=WARMUP), "inverse_sqrt", {}),
    ],
)
def test_rates_equal_those_of_transformers(schedule: Schedule, name: str, specific: dict[str, object]) -> None:
    wanted = rates_of_transformers(name, STEPS, **specific)
    assert [schedule(step) for step in range(STEPS + 1)] == pytest.approx(wanted, abs=1e-12)


def test_one_cycle_equals_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(  # its warm-up ends a step before its share of all rates does
        optimizer,
        max_lr=1.0,
        total_steps=STEPS + 1,
        pct_start=(WARMUP + 1) / (STEPS + 1),
        anneal_strategy="cos",
        cycle_momentum=False,
        div_factor=1e12,
        final_div_factor=1.0,
    )
    wanted = []
    for _ in range(STEPS):
        wanted.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    wanted.append(scheduler.get_last_lr()[0])
    schedule = OneCycle(STEPS, warmup_steps=WARMUP)
    assert [schedule(step) for step in range(STEPS + 1)] == pytest.approx(wanted, abs=1e-9)


def test_tri_stage_climbs_holds_and_decays_as_computed_by_hand() -> None:
    schedule = TriStage(100, warmup_fraction=0.1, hold_fraction=0.4, start=0.01, end=0.05)
    assert schedule(0) == pytest.approx(0.01)
    assert schedule(5) == pytest.approx(0.01 + 0.99 * 0.5)
    assert [schedule(step) for step in (10, 30, 49)] == [1.0, 1.0, 1.0]
    assert schedule(75) == pytest.approx(math.sqrt(0.05))
    assert schedule(100) == schedule(150) == pytest.approx(0.05)


@pytest.mark.parametrize(
    "schedule",
    [TriStage(50), *(kind(50, warmup_steps=9) for kind in (Polynomial, Cosine, OneCycle, Noam))],
)
def test_multipliers_lie_between_0_and_1_and_reach_1(schedule: Schedule) -> None:
    values = [schedule(step) for step in range(60)]
    assert all(0 <= value <= 1 for value in values)
    assert max(values) == 1


def test_a_warmup_longer_than_the_run_is_refused() -> None:
    for make in (Polynomial, Cosine, OneCycle, Noam):
        with pytest.raises(ConfigError, match="warmup_steps=50"):
            make(50, warmup_steps=50)
    with pytest.raises(ConfigError, match="peak"):
        Noam(50, warmup_steps=0)
    with pytest.raises(ConfigError, match="tri-stage"):
        TriStage(50, warmup_fraction=0.7, hold_fraction=0.4)
    for fractions in ({"warmup_fraction": -0.1}, {"hold_fraction": -0.1}, {"start": 1.5}, {"end": 0.0}):
        with pytest.raises(ConfigError, match="tri-stage"):
            TriStage(50, **fractions)
