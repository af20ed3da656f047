"""Another part in the place of one that an experiment says something of the inside of."""

import math
from pathlib import Path
from typing import Any

import pytest

from ossicle.core.errors import ConfigError
from ossicle.launch.bench.bare import BareStep
from ossicle.launch.bench.steps import StepWork
from ossicle.launch.config import compose, conf_dir, explain
from ossicle.launch.experiment import check, resolved
from ossicle.launch.parts import option
from tests.launch.toy import ossicle

WORK = StepWork(batch=2, samples=16_000, rate_hz=16_000, device="cpu", threads=1, seed=3, warmup=0)
CODES = ("objective=contrastive", "target=gumbel")
HEARS_NOTHING = ("encoder=recurrent", "frontend.norm=global")  # of what is to be foreseen
INSIDE = {
    "head": ("best_rq_tiny", CODES),
    "head of one layer too": ("fast_hubert_tiny", CODES),
    "mask": ("melhubert_tiny", ("objective=contrastive_predictive", "target=frames", *HEARS_NOTHING)),
    "projection": ("sew_d_tiny", ("objective=masked_prediction", "target=random_projection")),
    "momentum": ("spidr_tiny", ("objective=masked_prediction", "target=random_projection")),
    "frontend": ("vq_wav2vec_tiny", ("frontend=logmel", "frontend.norm=global")),
}  # fmt: skip


def composed(name: str, *overrides: str) -> dict[str, Any]:
    return resolved(compose("pretrain", [f"experiment={name}", "data.shards=nowhere", *overrides]))


@pytest.mark.parametrize(("name", "overrides"), INSIDE.values(), ids=INSIDE)
def test_a_part_that_has_no_such_inside_takes_the_place_of_one_that_has(name: str, overrides: tuple[str, ...]) -> None:
    config = composed(name, *overrides)
    check(config)
    assert math.isfinite(BareStep(config, WORK).step().item())


def test_the_inside_that_the_new_part_has_too_stays_the_experiments() -> None:
    assert composed("best_rq_tiny", *CODES)["objective"]["mask"]["_target_"].endswith("NoiseMask")
    assert composed("best_rq_tiny")["objective"]["head"]["_target_"].endswith("LinearHead")


def test_an_inside_that_the_command_line_itself_chooses_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"no key 'layer/head@objective\.head'"):
        composed("best_rq_tiny", *CODES, "layer/head@objective.head=cosine")


def test_a_file_that_chooses_what_its_own_parts_do_not_have_is_named() -> None:
    error = explain(ValueError("In 'experiment/mine': Could not override 'a@b.c'. No match"), "pretrain")
    assert "experiment/mine.yaml chooses a@b.c" in error.problem


def test_the_command_line_and_a_multirun_compose_so_too(tmp_path: Path) -> None:
    words = ("pretrain", "experiment=best_rq_tiny", "target=gumbel", "data.shards=nowhere")
    one = ossicle(*words, "objective=contrastive", "--cfg", "job", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    assert "CosineHead" not in one.stdout
    assert "LinearHead" not in one.stdout
    swept = ossicle(*words, "-m", "objective=contrastive,masked_prediction", "encoder.num_layers=0", cwd=tmp_path)
    assert "encodes nothing" in swept.stderr  # it is composed, and then refused for this


@pytest.mark.parametrize("name", ["spiral_tiny", "essl_tiny"])
def test_an_inside_is_left_out_with_what_the_experiment_says_of_it(name: str) -> None:
    config = composed(name, "~layer/spec_augment@model.spec_augment")
    assert config["model"]["spec_augment"] is None
    check(config)


CONVOLVED = [
    ("wav2vec_tiny", "wave_layer_norm", 320),
    ("fast_hubert_tiny", "wave_layer_norm", 320),
    ("w2v_bert", "wave", 320),
    ("hubert_large_tiny", "wave_compact", 320),
    ("hubert_large_tiny", "wave_cpc", 160),
    ("hubert_large_tiny", "logmel_conv", 320),
]


@pytest.mark.parametrize(("name", "frontend", "stride"), CONVOLVED)
def test_a_frontend_in_anothers_place_has_its_own_convolutions(name: str, frontend: str, stride: int) -> None:
    config = composed(name, f"frontend={frontend}")
    own = option(frontend, "frontend")["convolutions"]
    assert config["frontend"]["convolutions"] == own
    hop = 160 if frontend == "logmel_conv" else 1
    assert hop * math.prod(step for _, _, step in own) == stride
    check(config)


def test_convolutions_are_the_experiments_in_its_own_frontend_and_the_command_lines_in_any() -> None:
    own = composed("hubert_large_tiny")["frontend"]
    assert own["convolutions"][0] == [64, 10, 5]
    assert composed("hubert_large_tiny", "frontend=wave_layer_norm")["frontend"] == own
    stated = composed("hubert_large_tiny", "frontend=wave", "frontend.convolutions=[[8,400,320]]")
    assert stated["frontend"]["convolutions"] == [[8, 400, 320]]


def test_numbers_of_a_frontend_are_still_carried() -> None:
    assert composed("hubert_tiny", "frontend=logmel_conv")["frontend"]["band_shift"] == 5


def test_every_experiment_is_composed_as_its_file_says() -> None:
    for name in ("fast_hubert_tiny", "nest_tiny", "wav2vec_tiny"):
        said = (conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"convolutions: {composed(name)['frontend']['convolutions']}" in said
