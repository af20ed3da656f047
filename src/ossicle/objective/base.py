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

    @abstractmethod
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        """Loss of one batch.

        Args:
            model: The model that is trained.
            batch: Crops of one length.
            seed: The run's seed; with ``batch.position`` it determines masks and negatives.
            step: Optimiser steps taken so far; drives schedules inside the objective. A host integer.
        """
