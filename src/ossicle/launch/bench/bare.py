"""The bare training step of a composition: the system that is trained, without data, trainer and callbacks."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.memory import keep_memory
from ossicle.launch.bench.steps import Facts, StepWork, Subject
from ossicle.launch.config import Config
from ossicle.launch.experiment import PARTS, execution, instantiate_part, stages
from ossicle.meter.flops import macs_or_reason
from ossicle.system.build import Experiment, build
from ossicle.system.trainer import pick_precision
from ossicle.target.base import DiscreteTarget

if TYPE_CHECKING:
    from lightning import Trainer

NOTE = (
    "training_step, backward, clipping, optimiser and after_step of the system that ossicle pretrain trains, metrics"
    " and masks included; without loader, trainer, callbacks and a running average of the weights"
)


class RandomData:
    """Stands where a data module stands, and has nothing but a position.

    Attributes:
        position: Batches consumed.
    """

    def __init__(self) -> None:
        self.position = 0

    def set_clock(self, clock: FrameClock, num_classes: int | None = None) -> None:
        """Nothing depends on the clock here: labels are drawn on it."""

    def advance(self, batches_per_rank: int = 1) -> None:
        """Count batches as consumed."""
        self.position += batches_per_rank


class Loop:
    """What the system asks of its trainer, for one process and one batch a step.

    Attributes:
        global_step: Optimiser steps taken.
    """

    def __init__(self, data: RandomData) -> None:
        self.datamodule = data
        self.world_size = 1
        self.accumulate_grad_batches = 1
        self.max_steps = -1
        self.global_step = 0
        self.loggers: list[object] = []
        self.callbacks: list[object] = []


class BareStep(Subject):
    """Steps of a composition on random audio of one shape.

    Args:
        config: A resolved config of ``ossicle pretrain``.
        work: What is asked for; precision and compilation are the config's.
    """

    def __init__(self, config: Config, work: StepWork) -> None:
        if work.device == "cpu":
            keep_memory()  # as ossicle pretrain does
        self.work = work
        self.device = torch.device(work.device)
        data = RandomData()
        self.loop = Loop(data)
        experiment = experiment_of(config, data, work)
        self.compiled = experiment.execution.compile
        self.precision = pick_precision(experiment.precision, work.device)
        self.system = build(experiment).to(self.device).train()
        self.system.trainer = cast("Trainer", self.loop)
        self.optimizer = self.system.configure_optimizers()
        self.system.on_train_start()
        self.batch = self._batch()

    def _batch(self) -> Batch:
        rows = self.work.batch
        none_B = torch.zeros(rows, dtype=torch.int64, device=self.device)
        target = getattr(self.system.objective, "target", None)
        labels_BT = None
        if isinstance(target, DiscreteTarget):
            frames = self.system.model.clock.num_frames(self.work.samples)
            drawn = torch.Generator().manual_seed(self.work.seed)
            labels_BT = torch.randint(target.num_classes, (rows, frames), generator=drawn).to(self.device)
        return Batch(self.work.waveforms(), 0, none_B, none_B, labels_BT)

    @override
    def step(self) -> Tensor:
        number = self.loop.global_step
        batch = replace(self.batch, position=self.loop.datamodule.position)
        self.system.on_train_batch_start(batch, number)
        losses: list[Tensor] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            mixed = self.precision == "bf16-mixed"
            with torch.autocast(self.device.type, torch.bfloat16, mixed, cache_enabled=False):  # Lightning's choice
                loss = self.system.training_step(batch, number)
            loss.backward()
            self.system.configure_gradient_clipping(self.optimizer)
            losses.append(loss.detach())
            return loss

        self.system.optimizer_step(0, number, self.optimizer, closure)
        self.loop.global_step += 1
        self.system.on_train_batch_end(None, batch, number)
        return losses[0]

    @override
    def facts(self) -> Facts:
        return Facts(
            params=sum(p.numel() for p in self.system.parameters() if p.requires_grad),
            macs_per_audio_s=self._macs(),
            precision="bfloat16" if self.precision == "bf16-mixed" else "float32",
            compiled=self.compiled,
            note=NOTE,
        )

    def _macs(self) -> float | str:
        macs = macs_or_reason(self.system.model, self.work.samples)
        return macs if isinstance(macs, str) else macs * self.work.rate_hz / self.work.samples


def experiment_of(config: Config, data: RandomData, work: StepWork) -> Experiment:
    """A config's parts as the last run of its chain has them: HuBERT's second iteration has more classes."""
    parts = {name: instantiate_part(last_run(config), name) for name in PARTS}
    return Experiment(
        name=config["name"],
        seed=config["seed"],
        frontend=parts["frontend"],
        mixer=parts["mixer"],
        encoder=parts["encoder"],
        model=parts["model"],
        target=parts["target"],
        objective=parts["objective"],
        augmentation=parts["augmentation"],
        optim=parts["optim"],
        schedule=parts["schedule"],
        data=data,
        max_steps=config["max_steps"],
        clip_norm=config["clip_norm"],
        precision=config["precision"],
        execution=execution(config),
        init_from=None if config["init_from"] is None else Path(config["init_from"]),
        log_every=2**62,  # metrics are summed in every step and never read
        accelerator=work.device,
    )


def last_run(config: Config) -> Config:
    """The config with the number of classes that the last run of its chain predicts."""
    clusters = stages(config).runs()[-1].clusters
    return config if clusters is None else {**config, "target": {**config["target"], "num_classes": clusters}}
