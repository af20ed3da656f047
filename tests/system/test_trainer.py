from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.system.build import build
from ossicle.system.trainer import make_trainer, pick_precision
from ossicle.system.watcher import Watcher
from tests.system.toys import toy_experiment, toy_run


class Listener(Watcher):
    def __init__(self, **_: object) -> None:
        self.heard: list[tuple[int, dict[str, float]]] = []

    @override
    def on_metrics(self, trainer: Trainer, system: LightningModule, metrics: dict[str, float], step: int) -> None:
        self.heard.append((step, dict(metrics)))


class Log(Logger):
    name, version = "log", ""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_hyperparams(self, *_: object, **__: object) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


def test_precision_is_picked_by_the_device_and_float16_is_refused() -> None:
    assert pick_precision("auto", "cpu") == "32-true"
    assert pick_precision("bf16-mixed", "cpu") == "bf16-mixed"
    with pytest.raises(ConfigError, match="16-mixed"):
        pick_precision("16-mixed", "cuda")


def test_loggers_and_watchers_hear_the_same_metrics_every_log_every_steps(tmp_path: Path) -> None:
    experiment = toy_experiment(callbacks=(Listener,), max_steps=5, log_every=2, accumulate=2)
    log = Log()
    trainer = make_trainer(experiment, run_dir=tmp_path, config={}, loggers=[log])
    trainer.fit(build(experiment), datamodule=experiment.data)  # type: ignore[arg-type]
    listener = next(c for c in vars(trainer)["callbacks"] if isinstance(c, Listener))
    assert [step for step, _ in log.rows] == [2, 4, 5]
    assert listener.heard == log.rows
    first, last = log.rows[0][1], log.rows[-1][1]
    assert {
        "objective/loss", "objective/accuracy_masked", "objective/codes_perplexity", "target/codes_top", "optim/lr",
        "optim/grad_norm", "data/position", "data/wait_fraction", "meter/audio_s_per_s", "meter/audio_hours",
    } <= first.keys()  # fmt: skip
    assert first["optim/lr"] == pytest.approx(0.01 * (1 - 0.9 * 1 / 5))  # of the second step
    assert last["optim/lr"] == pytest.approx(0.01 * (1 - 0.9 * 4 / 5))  # of the fifth
    assert (first["data/position"], last["data/position"]) == (4, 10)
    audio_s = sum((2 + p % 3) * (4 + p % 2) * 0.1 for p in range(10))
    assert last["meter/audio_hours"] * 3600 == pytest.approx(audio_s)


def test_bf16_trains_on_a_cpu_too(tmp_path: Path) -> None:
    _, system = toy_run(tmp_path, precision="bf16-mixed", max_steps=2)
    assert isinstance(system, LightningModule)
    assert all(parameter.dtype == torch.float32 for parameter in system.parameters())
