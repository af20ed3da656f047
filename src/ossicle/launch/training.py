"""One training run through Lightning: the trainer, its plugins and what watches it."""

import logging
import warnings
from pathlib import Path

from ossicle.core.errors import OssicleError
from ossicle.launch.config import Config
from ossicle.launch.experiment import experiment

log = logging.getLogger(__name__)


class InterruptedRunError(OssicleError):
    """A run was asked to stop, and did so at the end of a step."""


def resumed_step(checkpoint: Path) -> int:
    """Optimiser steps that a checkpoint has seen; 0 where there is none."""
    import torch

    if not checkpoint.is_file():
        return 0
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def quiet() -> None:
    """Silence what Lightning says of itself: its tips and its list of devices that are not there."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r"The `srun` command is available")  # cluster=slurm is our way there
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec")
    warnings.filterwarnings("ignore", message=r"Found .* in eval mode at the start")  # teachers: they stay so


def train(config: Config, place: Path) -> float | None:
    """Train until ``max_steps``, from the last checkpoint in ``place`` where there is one.

    Args:
        config: A resolved config.
        place: Where this run writes.

    Returns:
        The loss at the last reading.

    Raises:
        InterruptedRunError: A signal ended the run before its last step; the step it reached is saved.
    """
    from lightning import LightningDataModule

    from ossicle.data.loader import told_of_lost_workers
    from ossicle.launch.loggers import loggers
    from ossicle.launch.statistics import fit_norms
    from ossicle.system.build import build
    from ossicle.system.trainer import make_trainer

    quiet()
    parts = experiment(config, place)
    system = build(parts)
    last = place / "checkpoints" / "last.ckpt"
    step = resumed_step(last)
    if step:
        log.info("resuming %s at step %d of %d", place, step, parts.max_steps)
    elif parts.init_from is None and fit_norms(system.model, config):
        system.objective.adopt(system.model)  # a teacher begins as the model is
    trainer = make_trainer(parts, run_dir=place, config=dict(config), loggers=loggers(config, place, step))
    assert isinstance(parts.data, LightningDataModule)
    with told_of_lost_workers():
        trainer.fit(system, datamodule=parts.data, ckpt_path=str(last) if step else None)
    if trainer.global_step < parts.max_steps:
        raise InterruptedRunError(
            f"{place} was stopped by a signal at step {trainer.global_step} of {parts.max_steps}, which is saved",
            "start the same command again: it goes on from there",
        )
    return system.last_loss
