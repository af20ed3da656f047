"""The contract of an objective, and what objectives share that mask frames or learn from a teacher."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.batch import Batch, ObjectiveOutput
from ossicle.core.errors import ConfigError
from ossicle.core.seeds import generator
from ossicle.core.shapes import Float, Int64
from ossicle.layer.mask import Mask
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.ops.masking import mask_indices, num_masked
from ossicle.target.base import Teacher
from ossicle.target.online_codebook import OnlineCodebook

TeacherT = TypeVar("TeacherT", bound=Teacher)


class Objective(nn.Module, ABC):
    """Compares what a model makes of a batch with a target, and returns a loss as sum and count.

    An objective owns the parameters that only pretraining needs (mask embedding, heads, quantiser); they are left
    behind when the encoder is exported.
    """

    takes_codes: bool = False
    """Whether it adds the penalty of a frontend that quantises."""

    least_frames: int = 1
    """Encoded frames that a crop must have: two where frames are told from others."""

    def adopt(self, model: SpeechEncoder) -> None:
        """Take from a model what the objective keeps of it, such as a teacher's weights, and hold it against its needs.

        Called when parts are put together, on the meta device too, and again after weights were loaded into the model.

        Args:
            model: The model that will be trained.

        Raises:
            ConfigError: This objective cannot train such a model.
        """

    def check_crop(self, model: SpeechEncoder, samples: int) -> None:
        """Hold a crop's length against what the loss needs of it, before any is read.

        Args:
            model: The model that will be trained.
            samples: Samples of a crop.

        Raises:
            ConfigError: The crop is too short.
        """
        frames = model.clock.num_frames(samples)
        if frames < self.least_frames:
            raise ConfigError(
                f"crops of {samples} samples have {frames} encoded frame(s), and the objective needs"
                f" {self.least_frames}",
                "raise data.min_crop_s",
            )

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


class TaughtObjective(Objective, Generic[TeacherT]):
    """Learns from a teacher, which takes what it needs of the student and follows it after every optimiser step.

    Where another base holds the model against its needs, this one stands before it among the bases.

    Attributes:
        target: The teacher.
    """

    target: TeacherT

    @override
    def adopt(self, model: SpeechEncoder) -> None:
        super().adopt(model)
        self.target.adopt(model)

    @override
    def after_step(self, model: SpeechEncoder, *, seed: int, step: int) -> None:
        self.target.follow(model, step=step)


class MaskingObjective(Objective):
    """Hides spans of the frontend's frames, and compares what the encoder makes of their places.

    Attributes:
        mask_start_probability: Probability that a frame starts a masked span.
        mask_length: Frames of a span.
    """

    mask_start_probability: float
    mask_length: int

    least_masked: int = 1
    """Masked frames that a crop must have: two where they are told from each other."""

    @override
    def check_crop(self, model: SpeechEncoder, samples: int) -> None:
        super().check_crop(model, samples)
        frames = model.feature_clock.num_frames(samples)
        masked = num_masked(frames, start_probability=self.mask_start_probability, length=self.mask_length)
        if not self.least_masked <= masked < frames:
            raise ConfigError(
                f"of the {frames} frame(s) of a crop of {samples} samples {masked} are masked",
                f"at least {self.least_masked} must be and one must not: raise data.min_crop_s, or change"
                " objective.mask_start_probability",
            )

    @override
    def adopt(self, model: SpeechEncoder) -> None:
        if not 0 < self.mask_start_probability < 1 or self.mask_length < 1:
            raise ConfigError(
                f"objective.mask_start_probability={self.mask_start_probability} with mask_length={self.mask_length}"
                " masks nothing, or everything",
                "a probability lies between 0 and 1, a span has one frame or more",
            )
        if model.clock != model.feature_clock:
            raise ConfigError(
                f"the encoder shortens: its frames lie on {model.clock}, the masked ones on {model.feature_clock}",
                "choose an encoder that keeps the frame rate (transformer, conformer, squeezed, hierarchical), or"
                " shorten in the frontend (logmel_conv)",
            )

    def draw_masks(self, model: SpeechEncoder, batch: Batch, *, seed: int, clones: int = 1) -> Int64[Tensor, "R M"]:
        """Masked frames of each row, as many in each: those of a row's clones lie next to each other, R = B * clones.

        Args:
            model: Says how many frames a crop has.
            batch: Crops of one length; its position determines the masks.
            seed: The run's seed.
            clones: Maskings of each row.
        """
        rows, samples = batch.waveform_BS.shape
        return mask_indices(
            rows * clones,
            model.feature_clock.num_frames(samples),
            start_probability=self.mask_start_probability,
            length=self.mask_length,
            generator=generator(seed, batch.position, 0, "mask", batch.waveform_BS.device),
        )


def require_teacher(target: nn.Module) -> Teacher:
    """The target itself, for objectives that learn from a teacher's frames.

    Raises:
        ConfigError: It is no teacher, or one with codebooks, which such an objective would never move.
    """
    if not isinstance(target, Teacher):
        raise ConfigError(
            f"this objective learns from a teacher, not from {type(target).__name__}", "set target=ema_teacher"
        )
    if isinstance(target, OnlineCodebook):
        raise ConfigError(
            "this objective learns from a teacher's frames, and would leave the codebooks of OnlineCodebook unused",
            "set target=ema_teacher, or objective=masked_codebooks",
        )
    return target


def embed_masked(
    mask: Mask,
    model: SpeechEncoder,
    normalised_BTC: Float[Tensor, "B T C"],
    masked_BM: Int64[Tensor, "B M"],
    batch: Batch,
    *,
    seed: int,
) -> Float[Tensor, "B T D"]:
    """Embedded frames of which the masked ones say nothing.

    Args:
        mask: What stands in their place.
        model: Embeds frames.
        normalised_BTC: What the model's ``normalise`` returned.
        masked_BM: Masked frames of each row.
        batch: Its position determines the mask's noise.
        seed: The run's seed.
    """
    noise = generator(seed, batch.position, 0, "mask_noise", normalised_BTC.device)
    return mask(model.embed, normalised_BTC, masked_BM, noise)
