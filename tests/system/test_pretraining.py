from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from ossicle.core.batch import Batch, ObjectiveOutput
from ossicle.core.seeds import derive_seed
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.transformer import Transformer
from ossicle.frontend.wave import Wave
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.mixer.attention import Attention
from ossicle.objective.base import Objective
from ossicle.optim.adamw import adamw
from ossicle.optim.schedules import Polynomial
from ossicle.system.build import build
from ossicle.system.pretraining import Pretraining
from tests.system.ranks import leave
from tests.system.toys import ToyData, toy_experiment, toy_run


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings on one, two and four gloo processes, one killed and resumed, one preempted."""
    folder = tmp_path_factory.mktemp("ranks")
    leave(Path(__file__).with_name("ranks.py"), folder, timeout_s=300)
    return folder


def read(ranks: Path, name: str) -> dict:
    path = ranks / f"{name}.pt"
    assert path.is_file(), f"{name} did not finish"
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_give_the_loss_gradients_and_weights_of_one(ranks: Path, world: int) -> None:
    alone = read(ranks, "world-1-0")
    for rank in range(world):
        among = read(ranks, f"world-{world}-{rank}")
        assert among["loss"] == pytest.approx(alone["loss"], abs=1e-6)
        assert among["position"] == alone["position"] == 20
        assert len(among["gradients"]) == len(alone["gradients"]) == 4
        for mine, theirs in zip(among["gradients"], alone["gradients"], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(among["weights"], alone["weights"], atol=1e-6, rtol=1e-5)


def test_a_run_killed_in_a_step_and_resumed_equals_the_uninterrupted_one_to_the_bit(ranks: Path) -> None:
    assert not (ranks / "killed-0.pt").is_file()
    straight, resumed = read(ranks, "straight-0"), read(ranks, "resumed-0")
    assert straight["step"] == resumed["step"] == 8
    assert straight["position"] == resumed["position"] == 16
    assert straight["weights"].keys() == resumed["weights"].keys()
    for name, weight in straight["weights"].items():
        assert torch.equal(weight, resumed["weights"][name]), name
    for number, state in straight["optimiser"].items():
        for name, value in state.items():
            assert torch.equal(value, resumed["optimiser"][number][name]), (number, name)
    last = [
        torch.load(ranks / run / "checkpoints" / "last.ckpt", weights_only=True)["average"]
        for run in ("straight", "killed")
    ]
    assert all(torch.equal(value, last[1][name]) for name, value in last[0].items())


def test_a_signal_to_one_rank_stops_all_at_one_step_with_a_checkpoint(ranks: Path) -> None:
    steps = {read(ranks, f"drained-{rank}")["step"] for rank in range(2)}
    assert len(steps) == 1
    saved = torch.load(ranks / "drained" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == steps.pop() < 20
    assert not (ranks / "drained" / "encoder.safetensors").exists()


def test_the_gradient_is_that_of_the_summed_loss_over_the_summed_count(tmp_path: Path) -> None:
    experiment = toy_experiment(clip_norm=None)
    reference = build(experiment)
    batches = iter(data_for(reference).train_dataloader())
    total, count = torch.zeros(()), torch.zeros(())
    for batch in (next(batches), next(batches), next(batches)):
        torch.manual_seed(derive_seed(experiment.seed, "dropout", batch.position))
        output = reference.objective(reference.model, batch, seed=experiment.seed, step=0)
        total, count = total + output.loss_sum, count + output.count
    (total / count).backward()

    _, trained = toy_run(tmp_path, clip_norm=None, accumulate=3, max_steps=1)
    assert isinstance(trained, Pretraining)
    for (name, mine), (_, wanted) in zip(trained.named_parameters(), reference.named_parameters(), strict=True):
        assert mine.grad is not None
        expected = torch.zeros_like(mine) if wanted.grad is None else wanted.grad
        torch.testing.assert_close(mine.grad, expected, atol=1e-6, rtol=1e-5, msg=name)
    assert trained.last_loss == pytest.approx(float(total / count), abs=1e-6)


def data_for(system: Pretraining) -> ToyData:
    data = ToyData()
    data.set_clock(system.model.clock)
    return data


def test_the_norm_of_the_gradient_is_clipped(tmp_path: Path) -> None:
    _, system = toy_run(tmp_path, clip_norm=0.01, max_steps=1)
    assert isinstance(system, Pretraining)
    norm = torch.stack([p.grad.norm() for p in system.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_what_was_drawn_before_does_not_change_the_initial_weights() -> None:
    first = build(toy_experiment()).state_dict()
    torch.manual_seed(999)
    torch.rand(5)
    second = build(toy_experiment()).state_dict()
    third = build(toy_experiment(seed=4)).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["model.project.weight"], third["model.project.weight"])


@pytest.mark.parametrize("names", [("frontend",), ("norm", "project"), ("frontend", "norm", "project")], ids="+".join)
def test_frozen_parts_stay_as_they_are_and_the_rest_goes_on(tmp_path: Path, names: tuple[str, ...]) -> None:
    parts = {
        "frontend": partial(Wave, ((16, 10, 5), (16, 8, 8), (16, 8, 8))),
        "mixer": partial(Attention, num_heads=2, dropout=0.0),
        "encoder": partial(Transformer, dim=16, num_layers=1, ffn_dim=16, position_kernel=3, position_groups=2),
    }

    def states(freeze_at: int | None) -> list[dict[str, torch.Tensor]]:
        found = []
        for steps in (2, 6):  # the schedule is long, so that six steps begin with those two
            changes = {
                "schedule": lambda **_: Polynomial(max_steps=100),
                "optim": partial(adamw, lr=0.01, weight_decay=0.5),
            }
            model = partial(
                Backbone,
                freeze_frontend_at=freeze_at if "frontend" in names else None,
                freeze_projection_at=freeze_at if "project" in names else None,
            )
            _, system = toy_run(tmp_path, max_steps=steps, model=model, **parts, **changes)
            assert isinstance(system, Pretraining)
            found.append({name: value.clone() for name, value in system.state_dict().items()})
        return found

    def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
        return {name for name, value in after.items() if not torch.equal(value, before[name])}

    before, after = states(2)
    frozen = {name for name in before if name.startswith(tuple(f"model.{part}." for part in names))}
    assert len(frozen) >= 3
    others = {name for name in before if name.startswith("model.") and name not in frozen}
    learning = moved(*states(None))
    assert frozen <= learning  # decay and gradient would have moved them
    assert moved(before, after).isdisjoint(frozen)
    assert moved(before, after) & others == learning & others != set()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_between_two_readings_makes_the_host_wait(tmp_path: Path) -> None:
    def strict(**_: object) -> Callback:
        return NoSync()

    changes = {"accelerator": "cuda", "precision": "bf16-mixed", "objective": Regression}
    trainer, _ = toy_run(tmp_path, (strict,), max_steps=12, log_every=12, accumulate=2, ema_decay=0.9, **changes)
    assert isinstance(trainer, Trainer)
    assert trainer.global_step == 12


class NoSync(Callback):
    """From the second step to the one before the last, whatever makes the host wait is an error."""

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if 2 <= batch_idx < 22 else "default")


class Regression(Objective):
    """An objective without a host sync of its own."""

    def __init__(self, dim: int, **_: object) -> None:
        super().__init__()
        self.head = nn.Linear(dim, 1)

    @override
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        error_BT1 = self.head(model(batch.waveform_BS).last_BTD).float() - 1
        return ObjectiveOutput(error_BT1.square().sum(), torch.full((), error_BT1.numel(), device=error_BT1.device))
