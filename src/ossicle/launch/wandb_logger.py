"""Weights & Biases: imported by runs that log there, and by no other, since it is slow to import."""

import logging
from collections.abc import Mapping
from pathlib import Path

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.launch.config import Config

log = logging.getLogger(__name__)


class SurvivingWandbLogger(WandbLogger):
    """Weights & Biases, whose failure costs a run its curves there and nothing else: metrics.csv has them too."""

    _lost = False

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._lost:
            return
        try:
            super().log_metrics(metrics, step)
        except (OSError, wandb.errors.Error) as error:
            self._lost = True
            log.warning("W&B is lost (%s): the run goes on with metrics.csv alone", error)

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        if not self._lost:
            super().finalize(status)


def wandb_logger(settings: Config, config: Config, run_dir: Path) -> Logger:
    """A Weights & Biases logger whose run has the run directory's identity, so that a resumed run goes on in one curve.

    Raises:
        ConfigError: ``wandb.mode`` is none of offline, online, disabled.
    """
    mode = settings["mode"]
    if mode not in {"offline", "online"}:
        raise ConfigError(f"wandb.mode={mode} is unknown", "choose offline, online or disabled")
    identity = "-".join(run_dir.parts[-3:] if run_dir.parent.parent.name == config["name"] else run_dir.parts[-2:])
    (run_dir / "wandb").mkdir(parents=True, exist_ok=True)

    def make(*, offline: bool) -> SurvivingWandbLogger:
        return SurvivingWandbLogger(
            save_dir=str(run_dir),
            project=settings["project"],
            entity=settings["entity"],
            name=identity,
            id=identity,
            offline=offline,
            config=dict(config),
            tags=list(settings["tags"]),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )

    logger = make(offline=mode == "offline")
    logger._wandb_init.pop("anonymous", None)  # noqa: SLF001  Lightning passes it on unset, and wandb then warns of it
    try:
        _ = logger.experiment  # opens the run on rank 0, which may find no server
    except wandb.errors.CommError as error:
        log.warning("W&B cannot be reached (%s): this run logs offline; send it later with wandb sync", error)
        wandb.teardown()  # its service still holds the run's id for the attempt that failed
        logger = make(offline=True)
        logger._wandb_init.pop("anonymous", None)  # noqa: SLF001  as above
    return logger
