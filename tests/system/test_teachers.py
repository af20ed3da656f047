"""Teachers and codebooks in a whole run: they move once an optimiser step and are resumed with it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from ossicle.callback.checkpoints import Checkpoints
from ossicle.layer.mask import EmbeddingMask
from ossicle.objective.base import Objective
from ossicle.objective.masked_codebooks import LayerwiseCodebooks
from ossicle.objective.regression import Regression
from ossicle.ops.momentum import Linear
from ossicle.optim.schedules import Polynomial
from ossicle.system.pretraining import Pretraining
from ossicle.target.ema_teacher import EmaTeacher
from ossicle.target.online_codebook import OnlineCodebook
from tests.objective.teaching import small_model
from tests.system.toys import toy_run

MOMENTUM = Linear(0.5, 1.0, 10)
CODEBOOK = partial(OnlineCodebook, momentum=MOMENTUM, top_layers=2, num_codes=8, code_std=0.1)
TEACHER = partial(EmaTeacher, momentum=MOMENTUM, top_layers=2)


class Shadow(Callback):
    """The teacher's recursion in float64, written out."""

    def __init__(self, **_: object) -> None:
        self.average: dict[str, Tensor] = {}
        self.step = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.average = {name: p.detach().double().clone() for name, p in pl_module.model.named_parameters()}  # ty: ignore

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            kept = 0.5 + 0.05 * self.step
            for name, p in pl_module.model.named_parameters():  # ty: ignore
                self.average[name] = kept * self.average[name] + (1 - kept) * p.detach().double()


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 1e-3)


def run(
    folder: Path,
    target: Callable[..., nn.Module],
    objective: Callable[..., Objective],
    callbacks: tuple[Callable[..., Callback], ...] = (),
    checkpoint: Path | None = None,
    **changes: object,
) -> tuple[Trainer, Pretraining]:
    parts = {"model": lambda **_: small_model(dropout=0.1), "target": target, "objective": objective, "optim": adam}
    parts["schedule"] = partial(Polynomial, end=1.0)  # constant: a run that ends early has the rates of a longer one
    trainer, system = toy_run(folder, callbacks, checkpoint, **parts, **changes)
    assert isinstance(trainer, Trainer)
    assert isinstance(system, Pretraining)
    return trainer, system


def test_a_teacher_moves_once_an_optimiser_step_whatever_is_accumulated(tmp_path: Path) -> None:
    objective = partial(Regression, mask=EmbeddingMask)
    trainer, system = run(tmp_path, TEACHER, objective, (Shadow,), max_steps=4, accumulate=3)
    shadow = next(c for c in vars(trainer)["callbacks"] if isinstance(c, Shadow))
    teacher = system.objective.target.model
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter.double(), shadow.average[name], atol=1e-6, rtol=1e-5)
    assert not any(module.training for module in teacher.modules())


def test_a_resumed_run_has_the_teacher_and_codebooks_of_the_uninterrupted_one(tmp_path: Path) -> None:
    objective = partial(LayerwiseCodebooks, mask=EmbeddingMask)
    keep = partial(Checkpoints, every_steps=3, keep=1)
    _, straight = run(tmp_path / "straight", CODEBOOK, objective, max_steps=6, accumulate=2)
    run(tmp_path / "first", CODEBOOK, objective, (keep,), max_steps=3, accumulate=2)
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    _, resumed = run(tmp_path / "second", CODEBOOK, objective, checkpoint=last, max_steps=6, accumulate=2)
    moved = resumed.state_dict()
    assert any(name.startswith("objective.target.copy.module.") for name in moved)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, moved[name]), name
