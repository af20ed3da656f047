"""Every YAML binds to its constructor and builds on the meta device; every experiment starts and takes two steps."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ossicle.core.clock import FrameClock
from ossicle.launch.binding import check_binding
from ossicle.launch.config import compose, groups
from ossicle.launch.experiment import build_on_meta, check, experiment, resolved
from ossicle.launch.labels import LabelRequest, make
from ossicle.launch.pretrain import pretrain
from ossicle.system.build import build_parts
from tests.launch.toy import CLUSTERS, TOY, on, shrunk

CONF = Path(__file__).resolve().parents[1] / "conf"
PARTS = sorted(
    path for path in CONF.glob("*/**/*.yaml") if path.parent.name not in {"experiment", "cluster", "job_logging"}
)
EXPERIMENTS = groups()["experiment"]


def toy(name: str, *more: str) -> dict[str, Any]:
    return resolved(compose("pretrain", [f"experiment={name}", "max_steps=2", *TOY, *more]))


@pytest.fixture(scope="module")
def labels(synthetic_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels for experiments that take those of another one."""
    clock = FrameClock().then(400, 320)
    output = tmp_path_factory.mktemp("labels")
    return make(
        LabelRequest(synthetic_dataset, "train", "mfcc", CLUSTERS, output=output, sample_frames=2000, clock=clock)
    )


@pytest.mark.parametrize("path", PARTS, ids=lambda p: str(p.relative_to(CONF)))
def test_every_yaml_binds_to_its_constructor(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    node = yaml.safe_load(text)
    assert "_target_" in node or "defaults" in node, "a part names its class"
    check_binding({path.parent.name: {key: value for key, value in node.items() if key != "defaults"}})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_builds_on_the_meta_device(name: str) -> None:
    config = resolved(compose("pretrain", [f"experiment={name}", *on("nowhere", name), "batch_s=1", "data.batch_s=1"]))
    check(config)
    build_on_meta(config)


@pytest.mark.parametrize("group", ["mixer", "frontend"])
def test_every_part_builds_in_an_encoder_on_the_meta_device(group: str) -> None:
    for option in groups()[group]:
        name = "wav2vec_tiny" if "quantised" in option else "hubert_tiny"  # its codes are for frames foreseen
        build_on_meta(toy(name, "data.shards=nowhere", f"{group}={option}"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_takes_two_steps(name: str, synthetic_dataset: Path, labels: Path, tmp_path: Path) -> None:
    config = shrunk(toy(name, *on(synthetic_dataset, name, labels), f"runs={tmp_path}"))
    check(config)
    loss = pretrain(config, tmp_path / "run")
    assert loss is not None
    assert math.isfinite(loss)
    assert (tmp_path / "run" / "encoder.safetensors").is_file()
    assert (tmp_path / "run" / "cost.json").is_file()


def test_two_builds_of_one_seed_are_equal_and_of_two_seeds_are_not(synthetic_dataset: Path, tmp_path: Path) -> None:
    weights = []
    for seed in (0, 0, 1):
        config = toy("best_rq_tiny", f"data.shards={synthetic_dataset}", f"seed={seed}")
        model, _ = build_parts(experiment(config, tmp_path))
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
