"""Every YAML binds to its constructor and builds on the meta device; every experiment starts and takes two steps."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ossicle.core.clock import FrameClock
from ossicle.data.buckets import choose_shapes
from ossicle.encoder.convolutional import Convolutional
from ossicle.launch.binding import check_binding
from ossicle.launch.config import compose, groups
from ossicle.launch.experiment import build_on_meta, check, experiment, instantiate_part, resolved
from ossicle.launch.labels import LabelRequest, make
from ossicle.launch.preflight import share_batch
from ossicle.launch.pretrain import pretrain
from ossicle.system.build import build_parts, connect
from tests.launch.toy import CLUSTERS, TOY, on, shrunk

CONF = Path(__file__).resolve().parents[1] / "conf"
PARTS = sorted(
    path for path in CONF.glob("*/**/*.yaml") if path.parent.name not in {"experiment", "cluster", "job_logging"}
)
EXPERIMENTS = groups()["experiment"]
FULL = [name for name in EXPERIMENTS if not name.endswith("_tiny")]
DEVICES = {
    "cpc": 8, "wav2vec": 8, "vq_wav2vec": 8, "wav2vec2_base": 64, "wav2vec2_large": 128, "xlsr": 64, "hubert_base": 32,
    "hubert_large": 128, "mhubert": 32, "mr_hubert": 32, "fast_hubert": 8, "data2vec_base": 16, "data2vec2_base": 8,
    "dinosr_base": 16, "spidr_base": 16, "spiral_base": 16, "essl": 1,
}  # fmt: skip
"""GPUs of the published runs, where a paper, a config or a README says how many."""


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


@pytest.mark.parametrize("name", FULL)
def test_every_full_experiments_crops_and_batches_can_be_made_on_one_and_on_the_published_devices(name: str) -> None:
    config = resolved(compose("pretrain", [f"experiment={name}", *on("nowhere", name)]))
    data, rate_hz = config["data"], 16_000
    samples_N = np.random.default_rng(0).integers(rate_hz, 35 * rate_hz, 20_000)
    numbers = {key: data[key] for key in ("max_crop_s", "min_crop_s", "num_shapes", "batch_s", "max_cut")}
    shapes = choose_shapes(samples_N, **numbers)
    assert shapes.lengths[0] >= data["min_crop_s"] * rate_hz
    assert data["max_crop_s"] * rate_hz - 320 < shapes.lengths[-1] <= data["max_crop_s"] * rate_hz
    assert all(
        abs(rows * length - data["batch_s"] * rate_hz) <= length / 2
        for rows, length in zip(shapes.rows, shapes.lengths, strict=True)
    ), "a crop is longer than what a rank takes at once"
    for devices in {1, DEVICES.get(name, 1)}:
        assert share_batch(config["batch_s"], data["batch_s"], devices).world == devices


# the papers' figures: a frame of the context hears 210 ms, in the larger network 810 ms; that has 34 million parameters
@pytest.mark.parametrize(("name", "heard_ms", "millions"), [("wav2vec", 210, None), ("vq_wav2vec", 810, 34)])
def test_wav2vecs_networks_hear_as_much_as_the_published_ones(name: str, heard_ms: int, millions: int | None) -> None:
    config = resolved(compose("pretrain", [f"experiment={name}", "data.shards=nowhere"]))
    kinds = ("frontend", "mixer", "encoder", "model", "target", "objective")
    with torch.device("meta"):
        model, objective = connect(**{kind: instantiate_part(config, kind) for kind in kinds})
    encoder, clock = model.get_submodule("encoder"), model.clock
    assert isinstance(encoder, Convolutional)
    heard = clock.kernel_samples + sum(block.kernel - 1 for block in encoder.blocks) * clock.stride_samples
    assert 1000 * heard / clock.rate_hz == pytest.approx(heard_ms, abs=2)
    assert all((block.scale is None) == (name == "wav2vec") for block in encoder.blocks)
    if millions is not None:
        count = sum(p.numel() for part in (model, objective) for p in part.parameters())
        assert count == pytest.approx(1e6 * millions, rel=0.05)


@pytest.mark.parametrize("group", ["mixer", "frontend"])
def test_every_part_builds_in_an_encoder_on_the_meta_device(group: str) -> None:
    for option in groups()[group]:
        name = "wav2vec_tiny" if "quantised" in option else "hubert_tiny"  # its codes are for frames foreseen
        build_on_meta(toy(name, "data.shards=nowhere", f"{group}={option}"))


@pytest.mark.parametrize("encoder", groups()["encoder"])
def test_every_encoder_builds_with_its_own_numbers_on_the_meta_device(encoder: str) -> None:
    asked = {  # by the first lines of their files
        "progressive": [
            "frontend=logmel",
            "frontend.stack=1",
            "frontend.num_mels=128",
            "mixer.num_heads=null",
            "mixer.head_dim=64",
        ],
        "branchformer": ["mixer.num_heads=8"],  # of 512
    }
    words = ["experiment=hubert_base", "data.shards=nowhere", f"encoder={encoder}", *asked.get(encoder, [])]
    if encoder == "progressive":  # it shortens: no spans of the frontend's frames
        words += ["objective=contrastive_teacher", "target=ema_teacher"]
    check(resolved(compose("pretrain", words)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_takes_two_steps(name: str, synthetic_dataset: Path, labels: Path, tmp_path: Path) -> None:
    config = shrunk(toy(name, *on(synthetic_dataset, name, labels), f"runs={tmp_path}"))
    check(config)
    loss = pretrain(config, tmp_path / "run")
    assert loss is not None
    assert math.isfinite(loss)
    assert (tmp_path / "run" / "encoder.safetensors").is_file()
    assert (tmp_path / "run" / "cost.json").is_file()


@pytest.mark.parametrize("hybrid", ["[attention,summary]", "[{mixer: convolution, kind: dynamic},relative_attention]"])
def test_a_hybrid_takes_two_steps(hybrid: str, synthetic_dataset: Path, tmp_path: Path) -> None:
    config = toy("best_rq_tiny", f"data.shards={synthetic_dataset}", f"runs={tmp_path}", f"mixer={hybrid}")
    check(config)
    loss = pretrain(config, tmp_path / "run")
    assert loss is not None
    assert math.isfinite(loss)
    model, _ = build_parts(experiment(config, tmp_path))
    assert len({type(block.mixer) for block in model.encoder.blocks}) == 2


def test_two_builds_of_one_seed_are_equal_and_of_two_seeds_are_not(synthetic_dataset: Path, tmp_path: Path) -> None:
    weights = []
    for seed in (0, 0, 1):
        config = toy("best_rq_tiny", f"data.shards={synthetic_dataset}", f"seed={seed}")
        model, _ = build_parts(experiment(config, tmp_path))
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
