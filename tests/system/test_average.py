from functools import partial
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import override

from ossicle.callback.checkpoints import Checkpoints
from ossicle.optim.schedules import Polynomial
from ossicle.system.pretraining import Pretraining
from tests.system.toys import toy_run


class Shadow(Callback):
    """The same average in float64, written out."""

    def __init__(self, **_: object) -> None:
        self.average: dict[str, Tensor] = {}
        self.step = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.average = {name: p.detach().double().clone() for name, p in pl_module.named_parameters()}

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            for name, p in pl_module.named_parameters():
                self.average[name] = 0.8 * self.average[name] + 0.2 * p.detach().double()


def test_the_average_follows_its_formula_and_is_exported_beside_the_weights(tmp_path: Path) -> None:
    callbacks = (Shadow, partial(Checkpoints, every_steps=4, keep=1))
    trainer, system = toy_run(tmp_path, callbacks, accumulate=2, ema_decay=0.8)
    assert isinstance(trainer, Trainer)
    assert isinstance(system, Pretraining)
    shadow = next(c for c in vars(trainer)["callbacks"] if isinstance(c, Shadow))
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["average"].keys() == shadow.average.keys()
    for name, value in saved["average"].items():
        torch.testing.assert_close(value.double(), shadow.average[name], atol=1e-6, rtol=1e-5)
        assert torch.equal(saved["state_dict"][name], system.state_dict()[name])
    exported = load_file(tmp_path / "encoder-average.safetensors")
    assert exported.keys() == load_file(tmp_path / "encoder.safetensors").keys()
    assert torch.equal(exported["project.weight"], saved["average"]["model.project.weight"])


def test_a_resumed_average_goes_on_from_its_steps_and_moves_once_in_each(tmp_path: Path) -> None:
    saved = []
    for folder, sessions in (("whole", (4,)), ("parts", (2, 4))):
        last = tmp_path / folder / "checkpoints" / "last.ckpt"
        for steps in sessions:
            callbacks = (partial(Checkpoints, every_steps=2, keep=1),)
            schedule = partial(Polynomial, end=0.1)
            toy_run(
                tmp_path / folder, callbacks, last if last.exists() else None, accumulate=2, ema_decay=0.8,
                max_steps=steps, schedule=lambda schedule=schedule, **_: schedule(max_steps=4),
            )  # fmt: skip
        saved.append(torch.load(last, weights_only=True)["average"])
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())
