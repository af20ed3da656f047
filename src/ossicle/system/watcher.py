"""What a callback implements to see the metrics of a run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from lightning import Callback, LightningModule, Trainer


class Watcher(Callback, ABC):
    """A callback that is shown the metrics whenever the system reads them, on every rank.

    The system reads them every ``log_every`` optimiser steps; in between nothing leaves the device.
    """

    def measure(self, trainer: Trainer, system: LightningModule) -> Mapping[str, float]:
        """What the callback adds to a reading of the metrics before they are logged; nothing where it adds none.

        Args:
            trainer: The trainer.
            system: The system that is trained.

        Returns:
            Values by full name, the same on every rank.
        """
        del trainer, system
        return {}

    @abstractmethod
    def on_metrics(self, trainer: Trainer, system: LightningModule, metrics: Mapping[str, float], step: int) -> None:
        """Called after an optimiser step and before that step is checkpointed.

        Args:
            trainer: The trainer.
            system: The system that is trained.
            metrics: Values by full name, over all ranks and all steps since the last reading.
            step: Optimiser steps taken, this one included.
        """
