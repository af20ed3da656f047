"""A running average of the weights."""

from collections.abc import Mapping
from typing import cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

CHECKPOINT_KEY = "average"


class WeightAverage(Callback):
    """Keeps an exponential moving average of the trained weights, beside them, from the first step on.

    Lightning's EMAWeightAveraging is not used: it asks a tensor on the device in every step whether it is the first,
    which makes the host wait; it goes through the parameters one by one; it puts the average in the weights' place in
    checkpoints and, when training ends, in the model.

    Args:
        decay: What the average keeps of itself in a step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._step = 0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        current = dict(pl_module.named_parameters())
        before = self.average  # what a checkpoint brought, if there was one
        self.average = {
            key: before[key].to(value.device) if key in before else value.detach().clone()
            for key, value in current.items()
            if value.requires_grad
        }

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # a micro-batch that no optimiser step followed
        self._step = trainer.global_step
        current = dict(pl_module.named_parameters())
        weights = [current[key].detach() for key in self.average]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - self.decay)

    def averaged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A system's state with the average in place of what is averaged."""
        return {key: self.average.get(key, value) for key, value in state.items()}

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        checkpoint[CHECKPOINT_KEY] = dict(self.average)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        self.average = dict(cast("dict[str, Tensor]", checkpoint.get(CHECKPOINT_KEY, {})))
