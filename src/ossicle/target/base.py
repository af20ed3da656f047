"""The contracts of targets."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float, Int64
from ossicle.layer.layer_reader import LayerReader, Read
from ossicle.layer.normalisation import UtteranceNorm
from ossicle.layer.speech_encoder import SpeechEncoder


class DiscreteTarget(nn.Module, ABC):
    """One class a frame, without gradient: what masked prediction predicts.

    Attributes:
        num_classes: How many classes there are (V).
    """

    num_classes: int

    @abstractmethod
    def forward(self, batch: Batch, clock: FrameClock) -> Int64[Tensor, "B T"]:
        """Class of every frame of the model's clock, int64, shape (B, T)."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """What a learned quantiser makes of frames.

    Args:
        vectors_BMD: Quantised frames with a gradient into codebook and input, shape (B, M, D).
        codes_BMG: The code that each frame took in each group, int64, shape (B, M, G): equal codes, equal vectors.
        code_probabilities_GV: Softmax probabilities averaged over frames, with gradient: the diversity loss's input.
        code_counts_GV: How often each code was the most likely one, without gradient and without noise.
    """

    vectors_BMD: Tensor
    codes_BMG: Tensor
    code_probabilities_GV: Tensor
    code_counts_GV: Tensor


class QuantisedTarget(nn.Module, ABC):
    """Quantises the frontend's frames with learned codebooks: what a contrastive objective tells apart.

    Attributes:
        dim: Width of the quantised vectors.
        num_groups: Codebooks (G).
        num_codes: Codes of each codebook (V).
    """

    dim: int
    num_groups: int
    num_codes: int

    @abstractmethod
    def forward(self, features_BMC: Float[Tensor, "B M C"], *, seed: int, position: int, step: int) -> Quantised:
        """Quantise frames. ``seed`` and ``position`` determine the Gumbel noise, ``step`` the temperature."""


class Teacher(nn.Module, ABC):
    """A model that hears the whole utterance, without gradient; what its layers make of it is what another predicts.

    Args:
        clock: The clock of the student's frames.
        feature_dim: Channels of the student's frontend's frames (C).
        top_layers: How many layers are read, counted from the last (K).
        read: What is read of each: see :class:`~ossicle.layer.layer_reader.LayerReader`.

    Attributes:
        dim: Width of its frames (D), or None where that is the student's.
        shares_frontend: Whether the frontend is the student's own, so that its frames need not be made twice.
    """

    dim: int | None = None
    shares_frontend: bool = False

    def __init__(self, clock: FrameClock, feature_dim: int, *, top_layers: int, read: Read) -> None:
        super().__init__()
        self.clock = clock
        self.feature_dim = feature_dim
        self.top_layers = top_layers
        self.read: Read = read
        self.lag = 0  # the teacher's frame that is nearest to the student's first one
        self.norm = UtteranceNorm()
        self._reader: LayerReader | None = None

    @property
    @abstractmethod
    def model(self) -> SpeechEncoder:
        """The teaching model, without gradient, and in evaluation mode unless its dropout is asked for."""

    @abstractmethod
    def adopt(self, model: SpeechEncoder) -> None:
        """Hold the student against this teacher, and begin as it is where the teacher follows it.

        Args:
            model: The student.

        Raises:
            ConfigError: They do not fit each other.
        """

    def follow(self, model: SpeechEncoder, *, step: int) -> None:
        """Follow the student after an optimiser step; a frozen teacher does not.

        Args:
            model: The student.
            step: Optimiser steps taken, this one included.
        """

    def gap(self, model: SpeechEncoder) -> Float[Tensor, ""] | None:
        """How far the teacher's weights are from the student's, relative to their length; None where it is another."""
        del model

    @torch.no_grad()
    def hear(self, batch: Batch, features_BTC: Float[Tensor, "B T C"] | None = None) -> Float[Tensor, "B T D"]:
        """The batch's speech, embedded by the teacher.

        Args:
            batch: Crops of one length.
            features_BTC: What the student's frontend made of the waveform: taken where the frontend is shared and
                augmentation left the speech as it was.
        """
        if features_BTC is None or not self.shares_frontend or batch.clean_BS is not None:
            features_BTC = self.model.local(batch.speech).features_BTC
        return self.model.embed(self.model.normalise(features_BTC.detach()))

    @torch.no_grad()
    def layers(
        self, batch: Batch, features_BTC: Float[Tensor, "B T C"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], ...]:
        """The last layers' frames, each channel normalised over the utterance, float32, K tensors (B, T, D).

        They are as many as the student's: of a teacher on another clock, those whose middles are nearest.

        Args:
            batch: Crops of one length.
            features_BTC: The student's frontend's frames: see :meth:`hear`.
        """
        x_BTD = self.hear(batch, features_BTC)
        assert self._reader is not None, "a teacher is held against its needs before it is asked"
        outputs = self._reader(lambda layers: self.model.encode(x_BTD, layers=layers))[-self.top_layers :]
        num_frames = self.clock.num_frames(batch.waveform_BS.shape[1])
        with torch.autocast(x_BTD.device.type, enabled=False):
            return tuple(nearest_frames(self.norm(output.float()), self.lag, num_frames) for output in outputs)

    def forward(self, batch: Batch, features_BTC: Float[Tensor, "B T C"] | None = None) -> Float[Tensor, "B T D"]:
        """The mean of :meth:`layers` (arXiv 2202.03555, section 3.3), float32, shape (B, T, D)."""
        layers = self.layers(batch, features_BTC)
        return torch.stack(layers).mean(0)

    def _fits(self, teacher: SpeechEncoder) -> None:
        """Hold a teaching model against what is asked of it.

        Raises:
            ConfigError: It has fewer layers than are read, or another frame rate.
        """
        if not 1 <= self.top_layers <= teacher.num_layers:
            raise ConfigError(
                f"target.top_layers={self.top_layers} of an encoder with {teacher.num_layers} layers",
                f"it lies in [1, {teacher.num_layers}]",
            )
        self.lag = lag_of(teacher.clock, self.clock)
        self._reader = LayerReader(teacher, self.read)


def lag_of(teacher: FrameClock, student: FrameClock) -> int:
    """The teacher's frame whose middle is nearest to that of the student's first one; negative before the crop.

    Args:
        teacher: The clock of the teacher's frames.
        student: The clock of the student's frames.

    Raises:
        ConfigError: They differ in their frames a second, or in their samples a second.
    """
    if teacher.rate_hz != student.rate_hz:
        raise ConfigError(
            f"the teacher hears {teacher.rate_hz} samples a second, the student {student.rate_hz}",
            "take a teacher of the student's sampling rate",
        )
    if teacher.stride_samples != student.stride_samples:
        raise ConfigError(
            f"the teacher makes {teacher.frames_per_s:g} frames a second, the student {student.frames_per_s:g}",
            f"choose a frontend and an encoder of {teacher.frames_per_s:g} frames a second, or another teacher",
        )
    return round((student.centre_samples(0) - teacher.centre_samples(0)) / student.stride_samples)


def nearest_frames(x_BTD: Float[Tensor, "B T D"], lag: int, num_frames: int) -> Float[Tensor, "B U D"]:
    """Frames from ``lag`` on, as many as are asked for; beyond the ends, the first one and the last one.

    Args:
        x_BTD: Frames, one or more.
        lag: The first frame, negative where it lies before them.
        num_frames: Frames that are wanted (U).
    """
    if lag == 0 and x_BTD.shape[1] == num_frames:
        return x_BTD
    place_U = torch.arange(lag, lag + num_frames, device=x_BTD.device).clamp(0, x_BTD.shape[1] - 1)
    return x_BTD[:, place_U]
