import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launch.toy import ENVIRONMENT, TOY, command, ossicle, single_run

NAME = "best_rq_tiny"


def arguments(dataset: Path, runs: Path, *more: str) -> list[str]:
    return ["pretrain", f"experiment={NAME}", f"data.shards={dataset}", f"runs={runs}", *TOY, "max_steps=40", *more]


def steps_logged(runs: Path) -> int:
    files = list(runs.glob(f"{NAME}/*/metrics.csv"))
    return len(files[0].read_text().splitlines()) - 1 if files else 0


@pytest.fixture(scope="module")
def uninterrupted(synthetic_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("whole")
    ran = ossicle(*arguments(synthetic_dataset, runs, "checkpoint_every=1000"), cwd=runs)
    assert ran.returncode == 0, ran.stderr
    return single_run(runs, NAME)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_killed_and_started_again_ends_as_the_uninterrupted_one(
    kill: signal.Signals, uninterrupted: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    line = arguments(synthetic_dataset, tmp_path, "checkpoint_every=3")
    step = random.randrange(4, 16)  # any will do: what is said below names it where the test fails
    victim = subprocess.Popen(command(*line), cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while steps_logged(tmp_path) < step and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.send_signal(kill)
    _, said = victim.communicate()
    reached = steps_logged(tmp_path)
    assert step <= reached < 40, said
    if kill is signal.SIGTERM:
        assert victim.returncode == 1
        assert "start the same command again" in said
    again = ossicle(*line, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stdout + again.stderr
    run = single_run(tmp_path, NAME)
    assert run.name == uninterrupted.name
    assert steps_logged(tmp_path) == 40
    ours, theirs = load_file(run / "encoder.safetensors"), load_file(uninterrupted / "encoder.safetensors")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs), f"killed at step {reached}, asked for {step}"


def test_a_finished_run_is_not_run_again(uninterrupted: Path, synthetic_dataset: Path) -> None:
    before = (uninterrupted / "encoder.safetensors").stat().st_mtime_ns
    ran = ossicle(*arguments(synthetic_dataset, uninterrupted.parents[1], "checkpoint_every=7"), cwd=uninterrupted)
    assert ran.returncode == 0, ran.stderr
    assert "nothing to do" in ran.stdout + ran.stderr
    assert (uninterrupted / "encoder.safetensors").stat().st_mtime_ns == before


def test_checkpoints_load_as_weights_only_and_carry_what_a_run_needs(uninterrupted: Path) -> None:
    checkpoint = torch.load(uninterrupted / "checkpoints" / "last.ckpt", weights_only=True)
    assert {"state_dict", "config", "code", "position", "cost"} <= checkpoint.keys()
    assert not any(key.startswith(("_orig_mod", "module.")) for key in checkpoint["state_dict"])
    assert checkpoint["config"]["name"] == NAME
    assert checkpoint["position"] == 40


def test_the_cost_card_says_how_each_figure_was_obtained(uninterrupted: Path) -> None:
    card = json.loads((uninterrupted / "cost.json").read_text())
    assert {
        "gpu_hours", "wall_s", "audio_hours", "audio_s_per_s", "padding_fraction", "data_wait_fraction", "mfu",
        "peak_memory_bytes", "energy_kwh", "co2e_kg", "params", "macs_per_audio_s",
    } <= card.keys()  # fmt: skip
    # 40 steps of 4 s each, to the nearest number of crops of the length that the shapes' optimiser chose
    assert card["audio_hours"]["value"] == pytest.approx(40 * 4 / 3600, rel=0.25)
    assert card["padding_fraction"]["value"] == 0
    assert card["co2e_kg"]["value"] is None


def test_a_multirun_trains_each_job(synthetic_dataset: Path, tmp_path: Path) -> None:
    line = [item for item in arguments(synthetic_dataset, tmp_path) if not item.startswith("max_steps")]
    ran = ossicle(*line, "max_steps=2", "-m", "seed=0,1", "encoder.num_layers=1,2", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    runs = list((tmp_path / NAME).iterdir())
    assert len(runs) == 4
    assert all((run / "encoder.safetensors").is_file() for run in runs)


def test_two_processes_train_as_one_on_the_same_global_batch(synthetic_dataset: Path, tmp_path: Path) -> None:
    line = [item for item in arguments(synthetic_dataset, tmp_path) if not item.startswith(("max_steps", "batch_s"))]
    short = [*line, "max_steps=6", "batch_s=8"]
    weights = []
    for world in (1, 2):
        place = tmp_path / str(world)
        ran = ossicle(*short, f"cluster.devices={world}", f"runs={place}", cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        weights.append(load_file(single_run(place, NAME) / "encoder.safetensors"))
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-5) for key in weights[0])


def test_a_chain_of_iterations_trains_on_two_processes(synthetic_dataset: Path, tmp_path: Path) -> None:
    chain = (
        "stage.iterations=["
        "{_target_:ossicle.stage.plan.Run,name:a,label_source:mfcc,clusters:8,max_steps:2},"
        "{_target_:ossicle.stage.plan.Run,name:b,label_source:layer,layer:1,clusters:8,max_steps:2}]"
    )
    ran = ossicle(
        "pretrain", "experiment=hubert_tiny", f"data.shards={synthetic_dataset}", f"runs={tmp_path}", *TOY[2:],
        "max_steps=2", "batch_s=8", "data.batch_s=4", "cluster.devices=2", chain, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    run = single_run(tmp_path, "hubert_tiny")
    assert {path.name for path in run.iterdir()} >= {"a", "b", "encoder.safetensors", "cost.json"}
