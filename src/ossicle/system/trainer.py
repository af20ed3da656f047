"""The Lightning trainer of a run, with what this project needs of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from ossicle.core.errors import ConfigError
from ossicle.core.processor import multiplies_bf16, note_bf16
from ossicle.system.average import WeightAverage
from ossicle.system.build import Experiment
from ossicle.system.checkpoint_io import AtomicCheckpointIO

Precision = Literal["32-true", "bf16-mixed"]
PRECISIONS: Final[Mapping[str, Precision]] = {
    "32-true": "32-true",
    "bf16-mixed": "bf16-mixed",
    "float8": "bf16-mixed",
    "float8-emulated": "bf16-mixed",
}
"""Lightning's precision for each that a config states."""


def pick_precision(precision: str, accelerator: str) -> Precision:
    """The precision of a run.

    Args:
        precision: ``auto`` (bf16 on a GPU that has it, float32 elsewhere), ``fastest`` (bf16 also on a CPU whose
            instructions multiply it), ``32-true``, ``bf16-mixed``, or ``float8`` and ``float8-emulated``, which are
            bf16 outside of the products of blocks.
        accelerator: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: The precision is unknown, or is float16: its range is too small for losses that are sums.
    """
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if precision in {"auto", "fastest"}:
        native = torch.cuda.is_bf16_supported() if on_gpu else precision == "fastest" and multiplies_bf16()
        return "bf16-mixed" if native else "32-true"
    check_precision(precision)
    if PRECISIONS[precision] == "bf16-mixed" and not on_gpu:
        note_bf16()
    return PRECISIONS[precision]


def check_precision(precision: object) -> None:
    """Refuse what :func:`pick_precision` does, before there is a machine to pick for.

    Raises:
        ConfigError: The precision is unknown, or is float16.
    """
    if precision not in {"auto", "fastest", *PRECISIONS}:
        raise ConfigError(
            f"precision={precision} is not one that runs take", f"choose auto, fastest, {', '.join(PRECISIONS)}"
        )


def make_callbacks(experiment: Experiment, run_dir: Path, config: Mapping[str, object]) -> list[Callback]:
    """Everything that watches a run."""
    average = [] if experiment.ema_decay is None else [WeightAverage(experiment.ema_decay)]
    return [*average, *(factory(run_dir=run_dir, config=dict(config)) for factory in experiment.callbacks)]


def make_trainer(
    experiment: Experiment, *, run_dir: Path, config: Mapping[str, object], loggers: Sequence[Logger] = ()
) -> Trainer:
    """The trainer of an experiment.

    Args:
        experiment: Parts and numbers.
        run_dir: Where the run writes.
        config: The resolved config, which checkpoints carry.
        loggers: Where metrics go.
    """
    callbacks = make_callbacks(experiment, run_dir, config)
    strategy: str | Strategy = "auto"
    if experiment.world_size > 1:
        # Buffers depend on the seed alone, so nothing is broadcast in a step; gradients live in the buckets.
        strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    # A preempted job is drained by callback/preempt.py: Lightning's own handler saves inside the signal handler.
    environment = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    return Trainer(
        max_steps=experiment.max_steps,
        max_epochs=-1,
        accelerator=experiment.accelerator,
        devices=experiment.devices,
        num_nodes=experiment.num_nodes,
        strategy=strategy,
        precision=pick_precision(experiment.precision, experiment.accelerator),
        accumulate_grad_batches=experiment.accumulate,
        callbacks=callbacks,
        logger=list(loggers) or False,
        plugins=[AtomicCheckpointIO(), *environment],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=run_dir,
    )
