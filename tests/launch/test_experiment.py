from typing import Any

import pytest

from ossicle.launch.config import compose
from ossicle.launch.experiment import as_run, instantiate_part, resolved, stages
from ossicle.optim.schedules import Schedule


def schedules(*overrides: str) -> list[Schedule]:
    """The schedule of each run of HuBERT's chain."""
    config: dict[str, Any] = resolved(
        compose("pretrain", ["experiment=hubert_base", "data.shards=nowhere", *overrides])
    )
    configs = [as_run(config, run) for run in stages(config).runs()]
    return [instantiate_part(each, "schedule")(max_steps=each["max_steps"]) for each in configs]


def test_each_of_huberts_iterations_warms_up_for_eight_per_cent_of_its_own_steps() -> None:
    for schedule, steps in zip(schedules(), (250_000, 400_000), strict=True):
        warmup = steps * 8 // 100
        assert schedule(warmup // 2) == pytest.approx(0.5)
        assert schedule(warmup) == 1.0
        assert schedule(warmup + (steps - warmup) // 2) == pytest.approx(0.5)
        assert schedule(steps) == 0.0


def test_a_schedule_that_counts_no_steps_of_warm_up_keeps_its_own() -> None:
    for schedule, steps in zip(schedules("optim/schedule@schedule=tri_stage"), (250_000, 400_000), strict=True):
        assert schedule(steps // 10) == 1.0
        assert schedule(steps // 10 - 1) < 1.0
