import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from safetensors import safe_open

from ossicle.callback import checkpoints
from ossicle.callback.checkpoints import Checkpoints, link
from ossicle.callback.cost import CostMeter
from ossicle.system.build import build
from ossicle.system.weights import load_encoder
from tests.system.toys import ToyData, toy_experiment, toy_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    toy_run(folder, (CostMeter, partial(Checkpoints, every_steps=2, keep=2)), accumulate=2, max_steps=7)
    return folder


def test_the_newest_checkpoints_are_kept_and_last_is_the_newest_of_them(run: Path) -> None:
    names = sorted(path.name for path in (run / "checkpoints").glob("*.ckpt"))
    assert names == ["last.ckpt", "step-00000006.ckpt", "step-00000007.ckpt"]
    assert (run / "checkpoints" / "last.ckpt").samefile(run / "checkpoints" / "step-00000007.ckpt")


def test_a_checkpoint_carries_config_position_code_and_cost(run: Path) -> None:
    saved = torch.load(run / "checkpoints" / "step-00000006.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    assert saved["config"] == {"name": "toy"}
    assert saved["position"] == saved["ToyData"]["position"] == 12
    assert saved["code"]["version"]
    assert saved["cost"]["audio_s"] == pytest.approx(saved["audio_s"]) != 0
    assert all(key.startswith(("model.", "objective.")) for key in saved["state_dict"])


def test_the_encoder_is_exported_alone_with_what_it_was_made_from(run: Path) -> None:
    with safe_open(str(run / "encoder.safetensors"), framework="pt") as file:
        metadata = file.metadata()
        assert not [key for key in file.keys() if key.startswith(("model.", "objective."))]  # noqa: SIM118  no mapping
    assert json.loads(metadata["config"]) == {"name": "toy"}
    assert json.loads(metadata["step"]) == 7
    model = build(toy_experiment(seed=9)).model
    load_encoder(model, run / "encoder.safetensors")
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(model.state_dict()["project.weight"], saved["model.project.weight"])


def test_a_finished_run_that_is_started_again_takes_no_step(run: Path) -> None:
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    data = ToyData()
    trainer, _ = toy_run(
        run, (partial(Checkpoints, every_steps=2, keep=2),), run / "checkpoints" / "last.ckpt",
        accumulate=2, max_steps=7, data=data,
    )  # fmt: skip
    assert isinstance(trainer, Trainer)
    assert (trainer.global_step, data.position) == (7, 14)
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_a_resumed_run_writes_nothing_before_its_first_step_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    saving = (partial(Checkpoints, every_steps=2, keep=5),)
    toy_run(tmp_path, saving, accumulate=2, max_steps=2)
    before = (folder / "step-00000002.ckpt").stat().st_mtime_ns
    toy_run(tmp_path, saving, folder / "last.ckpt", accumulate=2, max_steps=4)
    # its first micro-batch ends at step 2 too, with a position in the middle of step 3
    assert (folder / "step-00000002.ckpt").stat().st_mtime_ns == before
    positions = {
        step: torch.load(folder / f"step-0000000{step}.ckpt", weights_only=True)["position"] for step in (2, 4)
    }
    assert positions == {2: 4, 4: 8}


def test_last_is_kept_where_no_other_checkpoint_is_wanted(tmp_path: Path) -> None:
    toy_run(tmp_path, (partial(Checkpoints, every_steps=1, keep=0),), max_steps=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.ckpt"))
    assert names == ["last.ckpt", "step-00000002.ckpt"]


def test_without_hard_links_the_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(checkpoints.os, "link", refuse)
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_a_killed_process_left_of_a_link_is_in_nobodys_way(tmp_path: Path) -> None:
    for name, text in (("a", "new"), ("b", "old"), (".b.new", "half")):
        (tmp_path / name).write_text(text)
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
