"""The contract of an objective."""

from abc import ABC, abstractmethod

from torch import nn

from ossicle.core.batch import Batch, ObjectiveOutput
from ossicle.layer.speech_encoder import SpeechEncoder


class Objective(nn.Module, ABC):
    """Compares what a model makes of a batch with a target, and returns a loss as sum and count.

    An objective owns the parameters that only pretraining needs (mask embedding, heads, quantiser); they are left
    behind when the encoder is exported.
    """

    takes_codes: bool = False
    """Whether it adds the penalty of a frontend that quantises."""

    def adopt(self, model: SpeechEncoder) -> None:
        """Take from a model what the objective keeps of it, such as a teacher's weights, and hold it against its needs.

        Called when parts are put together, on the meta device too, and again after weights were loaded into the model.

        Args:
            model: The model that will be trained.

        Raises:
            ConfigError: This objective cannot train such a model.
        """

    def after_step(self, model: SpeechEncoder, *, seed: int, step: int) -> None:
        """Follow the model after an optimiser step, without gradient and without a wait for the device.

        Args:
            model: The model that is trained.
            seed: The run's seed.
            step: Optimiser steps taken, this one included.
        """

    @abstractmethod
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        """Loss of one batch.

        Args:
            model: The model that is trained.
            batch: Crops of one length.
            seed: The run's seed; with ``batch.position`` it determines masks and negatives.
            step: Optimiser steps taken so far; drives schedules inside the objective. A host integer.
        """
