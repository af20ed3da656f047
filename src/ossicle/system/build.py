"""From an experiment's parts to the system that trains them: the one place where parts are put together."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from lightning import Callback
from torch import nn

from ossicle.augmentation.base import Augmentation
from ossicle.augmentation.identity import Identity
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.seeds import derive_seed
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.base import Objective
from ossicle.optim.schedules import Schedule
from ossicle.system.execution import Execution
from ossicle.system.pretraining import Pretraining
from ossicle.system.weights import load_encoder


class PlannedData(Protocol):
    """What a system needs of a data module, which is a LightningDataModule besides.

    Attributes:
        position: Global batches consumed.
    """

    position: int

    def set_clock(self, clock: FrameClock, num_classes: int | None = None) -> None:
        """Take the model's clock, and the number of classes where it predicts classes, to hold labels against them."""

    def advance(self, batches_per_rank: int = 1) -> None:
        """Count batches as consumed on every rank."""


@dataclass(frozen=True)
class Experiment:
    """Everything that a run is made of: factories of parts, and numbers.

    Args:
        name: The experiment's name.
        seed: From which everything random follows.
        frontend: ``frontend()`` makes a Frontend.
        mixer: ``mixer(dim)`` makes a Mixer.
        encoder: ``encoder(mixer=)`` makes an Encoder.
        model: ``model(frontend=, encoder=)`` makes a SpeechEncoder.
        target: ``target(clock=, feature_dim=)`` makes a target.
        objective: ``objective(target=, dim=, feature_dim=)`` makes an Objective.
        optim: ``optim(module)`` makes an optimiser over the module's parameters.
        schedule: ``schedule(max_steps=)`` makes a Schedule.
        data: The data module, a LightningDataModule that is a PlannedData besides.
        max_steps: Optimiser steps.
        augmentation: ``augmentation(clock=)`` makes an Augmentation; nothing is changed by default.
        accumulate: Micro-batches a rank and optimiser step.
        clip_norm: Largest norm of the gradient, or None.
        precision: As :func:`~ossicle.system.trainer.pick_precision` takes it.
        execution: How blocks are run: compiled, recomputed, in float8.
        ema_decay: Decay of a running average of the weights, or None for no average.
        init_from: Exported weights or a checkpoint whose encoder the run starts from, or None.
        log_every: Optimiser steps between readings of the metrics.
        callbacks: ``callback(run_dir=, config=)`` makes a callback.
        accelerator: ``auto``, ``cpu`` or ``cuda``.
        devices: Ranks a node.
        num_nodes: Nodes.
    """

    name: str
    seed: int
    frontend: Callable[..., nn.Module]
    mixer: Callable[..., nn.Module]
    encoder: Callable[..., nn.Module]
    model: Callable[..., SpeechEncoder]
    target: Callable[..., nn.Module]
    objective: Callable[..., Objective]
    optim: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: Callable[..., Schedule]
    data: PlannedData
    max_steps: int
    augmentation: Callable[..., Augmentation] = Identity
    accumulate: int = 1
    clip_norm: float | None = None
    precision: str = "auto"
    execution: Execution = field(default_factory=Execution)
    ema_decay: float | None = None
    init_from: Path | str | None = None
    log_every: int = 100
    callbacks: tuple[Callable[..., Callback], ...] = ()
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that no run can have.

        Raises:
            ConfigError: A number is out of range.
        """
        for name in ("max_steps", "accumulate", "log_every", "devices", "num_nodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1", f"set {name}=1 or more")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"clip_norm={self.clip_norm} must be positive", "set clip_norm=null for no clipping")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"ema_decay={self.ema_decay} must lie in (0, 1)", "set ema_decay=null for no average")

    @property
    def world_size(self) -> int:
        """Ranks of the run."""
        return self.devices * self.num_nodes


def connect(
    *,
    frontend: Callable[..., nn.Module],
    mixer: Callable[..., nn.Module],
    encoder: Callable[..., nn.Module],
    model: Callable[..., SpeechEncoder],
    target: Callable[..., nn.Module],
    objective: Callable[..., Objective],
) -> tuple[SpeechEncoder, Objective]:
    """Build parts and put them together: each factory gets what the parts before it decide.

    Raises:
        ConfigError: The parts do not fit each other.
    """
    backbone = model(frontend=frontend(), encoder=encoder(mixer=mixer))
    goal = target(clock=backbone.clock, feature_dim=backbone.feature_dim)
    loss = objective(target=goal, dim=backbone.dim, feature_dim=backbone.feature_dim)
    if backbone.quantises and not loss.takes_codes:
        raise ConfigError(
            f"the frontend quantises, and {type(loss).__name__} does not train its codes",
            "choose objective=contrastive_binary or contrastive_predictive, or a frontend without a quantiser",
        )
    loss.adopt(backbone)
    return backbone, loss


def build_parts(experiment: Experiment) -> tuple[SpeechEncoder, Objective]:
    """The model and its objective, initialised from the experiment's seed whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(experiment.seed, "init"))
        return connect(
            frontend=experiment.frontend,
            mixer=experiment.mixer,
            encoder=experiment.encoder,
            model=experiment.model,
            target=experiment.target,
            objective=experiment.objective,
        )


def build(experiment: Experiment) -> Pretraining:
    """The system of an experiment, ready to be trained."""
    model, objective = build_parts(experiment)
    if experiment.init_from is not None:
        load_encoder(model, Path(experiment.init_from))
        objective.adopt(model)
    return Pretraining(
        model,
        objective,
        optim=experiment.optim,
        schedule=experiment.schedule(max_steps=experiment.max_steps),
        seed=experiment.seed,
        clip_norm=experiment.clip_norm,
        log_every=experiment.log_every,
        augmentation=experiment.augmentation(clock=model.clock),
        execution=experiment.execution,
    )
