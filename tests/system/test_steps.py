"""What one step leaves to the next: counts, readings, step numbers, and what a resumed run goes on with."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import nn
from typing_extensions import override

from ossicle.callback.checkpoints import Checkpoints
from ossicle.core.batch import Batch, ObjectiveOutput
from ossicle.core.seeds import derive_seed
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.meter.throughput import Passage, Throughput
from ossicle.optim.adamw import adamw
from ossicle.system.build import build
from ossicle.system.pretraining import Pretraining
from tests.system.test_trainer import Listener
from tests.system.toys import ToyBatches, ToyEncoder, ToyModel, ToyObjective, toy_experiment, toy_run

STILL = partial(adamw, lr=0.0)


def trained(run_dir: Path, **changes: object) -> tuple[Pretraining, Listener]:
    trainer, system = toy_run(run_dir, (Listener,), **changes)
    assert isinstance(trainer, Trainer)
    assert isinstance(system, Pretraining)
    return system, next(c for c in vars(trainer)["callbacks"] if isinstance(c, Listener))


def norm_of(system: Pretraining) -> float:
    return float(torch.stack([p.grad.norm() for p in system.parameters() if p.grad is not None]).norm())


def test_a_steps_gradient_is_divided_by_its_own_count_alone(tmp_path: Path) -> None:
    experiment = toy_experiment(clip_norm=None)
    reference = build(experiment)
    batches = ToyBatches()
    total, count = torch.zeros(()), torch.zeros(())
    for position in (2, 3):
        torch.manual_seed(derive_seed(experiment.seed, "dropout", position))
        output = reference.objective(reference.model, batches[position], seed=experiment.seed, step=1)
        total, count = total + output.loss_sum, count + output.count
    (total / count).backward()
    system, heard = trained(tmp_path, clip_norm=None, accumulate=2, max_steps=2, log_every=1, optim=STILL)
    for mine, wanted in zip(system.parameters(), reference.parameters(), strict=True):
        expected = torch.zeros_like(mine) if wanted.grad is None else wanted.grad
        torch.testing.assert_close(mine.grad, expected, atol=1e-6, rtol=1e-5)
    # a reading is of the steps since the one before
    assert [metrics["objective/loss"] for _, metrics in heard.heard][1] == pytest.approx(float(total / count), abs=1e-6)


class Mute(ToyObjective):
    """Finds nothing to learn from."""

    @override
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        output = super().forward(model, batch, seed=seed, step=step)
        return replace(output, loss_sum=0.0 * output.loss_sum, count=torch.zeros(()))


def test_batches_without_anything_to_count_leave_the_weights_finite(tmp_path: Path) -> None:
    system, _ = trained(tmp_path, objective=Mute, max_steps=2)
    assert all(bool(parameter.isfinite().all()) for parameter in system.parameters())


def test_what_a_step_left_out_has_a_gradient_of_zero(tmp_path: Path) -> None:
    system, _ = trained(tmp_path, encoder=partial(ToyEncoder, layer_drop=1.0), max_steps=1)
    for block in system.model.get_submodule("encoder.blocks").parameters():
        assert block.grad is not None
        assert not block.grad.any()
    assert norm_of(system) > 0


def test_a_bound_above_the_norm_changes_nothing_and_the_norm_that_is_told_is_the_one_before_clipping(
    tmp_path: Path,
) -> None:
    free, told = trained(tmp_path, clip_norm=None, max_steps=1, accumulate=2)
    wide, _ = trained(tmp_path, clip_norm=100 * norm_of(free), max_steps=1, accumulate=2)
    tight, clipped = trained(tmp_path, clip_norm=0.1 * norm_of(free), max_steps=1, accumulate=2)
    for mine, other in zip(free.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-8, rtol=1e-5)
    assert norm_of(tight) == pytest.approx(0.1 * norm_of(free), rel=1e-4)
    for listener in (told, clipped):
        assert listener.heard[0][1]["optim/grad_norm"] == pytest.approx(norm_of(free), rel=1e-5)


class Diary(ToyObjective):
    """Notes the numbers of the steps that it is told."""

    def __init__(self, **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        self.during: list[tuple[int, int]] = []
        self.after: list[tuple[int, int]] = []

    @override
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        self.during.append((seed, step))
        return super().forward(model, batch, seed=seed, step=step)

    @override
    def after_step(self, model: nn.Module, *, seed: int, step: int) -> None:
        self.after.append((seed, step))


class Annealed(ToyModel):
    """Notes the steps that it is annealed to."""

    steps: list[int]

    @override
    def anneal(self, step: int) -> None:
        self.steps = [*getattr(self, "steps", []), step]


def test_micro_batches_of_a_step_have_its_number_and_what_follows_it_the_next(tmp_path: Path) -> None:
    checkpoints = partial(Checkpoints, every_steps=2, keep=1)
    parts = {"objective": Diary, "model": Annealed, "accumulate": 2}
    _, first = toy_run(tmp_path, (checkpoints,), max_steps=2, **parts)
    _, second = toy_run(tmp_path, (checkpoints,), tmp_path / "checkpoints" / "last.ckpt", max_steps=3, **parts)
    for system, during, after in ((first, [0, 0, 1, 1], [1, 2]), (second, [2, 2], [3])):
        assert isinstance(system, Pretraining)
        diary, model = system.objective, system.model
        assert isinstance(diary, Diary)
        assert isinstance(model, Annealed)
        assert diary.during == [(3, step) for step in during]
        assert diary.after == [(3, step) for step in after]
        assert model.steps == during


def test_a_resumed_run_tells_the_audio_of_all_its_sessions(tmp_path: Path) -> None:
    checkpoints = partial(Checkpoints, every_steps=2, keep=1)
    changes = {"accumulate": 2, "log_every": 1}
    toy_run(tmp_path, (checkpoints,), max_steps=2, **changes)
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer, _ = toy_run(tmp_path, (checkpoints, Listener), last, max_steps=4, **changes)
    listener = next(c for c in vars(trainer)["callbacks"] if isinstance(c, Listener))
    audio_s = [sum((2 + p % 3) * (4 + p % 2) * 0.1 for p in range(2 * step)) for step in (3, 4)]
    assert [metrics["meter/audio_hours"] * 3600 for _, metrics in listener.heard] == pytest.approx(audio_s)
    assert torch.load(last, weights_only=True)["audio_s"] == pytest.approx(audio_s[1])


def test_waiting_is_told_as_a_share_of_the_time_and_speed_as_audio_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Throughput, "take", lambda _: Passage(audio_s=60.0, wait_s=5.0, wall_s=20.0))
    _, listener = trained(tmp_path, max_steps=1)
    metrics = listener.heard[0][1]
    assert metrics["data/wait_fraction"] == pytest.approx(0.25)
    assert metrics["meter/audio_s_per_s"] == pytest.approx(3.0)
