import math
from pathlib import Path
from typing import Any

import pytest

from ossicle.core.errors import ConfigError
from ossicle.launch.bench.bare import BareStep
from ossicle.launch.bench.steps import StepWork
from ossicle.launch.config import compose
from ossicle.launch.experiment import as_run, check, fit_stage, instantiate_part, resolved, stages
from ossicle.launch.pretrain import pretrain
from ossicle.optim.schedules import Schedule
from tests.launch.toy import TOY, shrunk


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


WITHOUT_CLASSES = {
    "gumbel": ("objective=contrastive",),
    "frames": ("objective=contrastive_predictive", "encoder=recurrent", "frontend.norm=global"),
    "ema_teacher": ("objective=regression",),
    "online_codebook": ("objective=masked_codebooks",),
    "random_projection": ("objective=masked_prediction",),
}


@pytest.mark.parametrize("target", WITHOUT_CLASSES)
def test_a_target_that_reads_no_labels_makes_one_run_of_a_chain_that_makes_them(
    target: str, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["experiment=mr_hubert_tiny", "encoder=transformer", "data.shards=nowhere", f"target={target}"]
    with caplog.at_level("INFO"):
        config = resolved(compose("pretrain", [*words, *WITHOUT_CLASSES[target], "encoder.num_layers=2"]))
    assert len(stages(config).runs()) == 1
    assert "one run instead" in caplog.text
    config["target"] |= {"top_layers": 2} if "top_layers" in config["target"] else {}
    check(config)
    work = StepWork(batch=2, samples=16_000, rate_hz=16_000, device="cpu", threads=1, seed=3, warmup=0)
    assert math.isfinite(BareStep(config, work).step().item())


def test_classes_of_a_target_that_reads_no_labels_stay_its_own() -> None:
    words = ["experiment=hubert_base", "data.shards=nowhere", "target=random_projection"]
    config = resolved(compose("pretrain", words))
    assert config["target"]["num_classes"] == 8192
    assert [run.label_source for run in stages(config).runs()] == [None]


def test_a_chain_is_kept_for_labels_whoever_made_them() -> None:
    for more in ((), ("data.labels=somewhere",)):
        config = resolved(compose("pretrain", ["experiment=hubert_base", "data.shards=nowhere", *more]))
        assert len(stages(config).runs()) == 2


def test_a_chain_that_the_command_line_asks_for_is_refused_where_labels_are_not_read() -> None:
    config = resolved(compose("pretrain", ["experiment=best_rq_tiny", "data.shards=nowhere"]))
    chain = {"stage": {"iterations": [{"label_source": "mfcc", "clusters": 100}]}}
    with pytest.raises(ConfigError, match="RandomProjection") as caught:
        fit_stage(config | chain, {"stage"})
    assert "stage=single" in caught.value.mend


def test_a_run_of_a_chain_without_its_labels_is_trained(synthetic_dataset: Path, tmp_path: Path) -> None:
    words = ["experiment=hubert_tiny", f"data.shards={synthetic_dataset}", "max_steps=2", *TOY]
    config = shrunk(resolved(compose("pretrain", [*words, "objective=contrastive", "target=gumbel"])))
    check(config)
    loss = pretrain(config, tmp_path / "run")
    assert loss is not None
    assert math.isfinite(loss)
    assert (tmp_path / "run" / "encoder.safetensors").is_file()
