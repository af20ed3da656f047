"""Telling a teacher's frames apart from a disturbed input: SPIRAL (arXiv 2201.10207, section 3) and ESSL."""

import math
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.batch import Batch, ObjectiveOutput
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.metrics import Mean
from ossicle.core.seeds import generator
from ossicle.core.shapes import Float, Int64
from ossicle.layer.running_copy import RunningCopy
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.base import TaughtObjective, require_teacher
from ossicle.objective.contrastive import num_first
from ossicle.ops.losses import contrastive_logits, frame_deviation
from ossicle.ops.masking import gather_frames
from ossicle.ops.negatives import sample_negatives
from ossicle.target.ema_teacher import EmaTeacher


@runtime_checkable
class PredictorFactory(Protocol):
    """Builds the student's predictor once its width is known."""

    def __call__(self, *, dim: int) -> nn.Module:
        """A map from frames (B, T, F) to frames of the same shape."""
        ...


@final
class ContrastiveTeacher(TaughtObjective[EmaTeacher]):
    """From disturbed speech, picks what a teacher makes of the clean speech's frame among the utterance's other frames.

    The student hears what augmentation left and what the model's SpecAugment hides; the teacher hears the clean speech,
    moved by a random number of frames between silence, so that no position tells which frame is meant. Teacher and
    student end in a projection, the student in a predictor besides. loss sum = cross entropy over all frames; the count
    is how many.

    Args:
        target: The teacher, a moving average of the student.
        dim: Width of the encoder's frames (D).
        feature_dim: Channels of the frontend's frames (C).
        predictor: Builds the predictor, from ``dim``.
        final_dim: Width in which frames are compared (F).
        num_negatives: Negatives of each frame (N).
        temperature: Divides the cosine similarities.
        max_shift: Encoded frames that the teacher's input is moved by at most; 0 for none. Silence before and after add
            up to as many, so that rows have one length; the authors draw each for itself, once for a batch.

    Raises:
        ConfigError: The target does not follow the student, or has codebooks, or a number is out of its range.
    """

    least_frames = 2

    def __init__(
        self,
        target: EmaTeacher,
        dim: int,
        feature_dim: int,
        *,
        predictor: PredictorFactory,
        final_dim: int = 256,
        num_negatives: int = 100,
        temperature: float = 0.3,
        max_shift: int = 16,
    ) -> None:
        super().__init__()
        del feature_dim
        if not isinstance(target, EmaTeacher):
            raise ConfigError(
                f"this objective's teacher follows the student, and {type(target).__name__} does not",
                "set target=ema_teacher",
            )
        require_teacher(target)
        if num_negatives < 1 or max_shift < 0 or temperature <= 0:
            raise ConfigError(
                f"objective.num_negatives={num_negatives}, max_shift={max_shift}, temperature={temperature}",
                "at least one, 0 or more, and above 0",
            )
        self.target = target
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.max_shift = max_shift
        self.project = nn.Linear(dim, final_dim)
        self.predict = predictor(dim=final_dim)
        self.teacher_project = RunningCopy(self.project)

    @override
    def after_step(self, model: SpeechEncoder, *, seed: int, step: int) -> None:
        super().after_step(model, seed=seed, step=step)
        self.teacher_project.follow(self.project, self.target.momentum(step))

    @override
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        device = batch.waveform_BS.device
        rows, samples = batch.waveform_BS.shape
        frames = model.clock.num_frames(samples)
        if frames < 2:
            raise DataError(f"crops of {samples} samples have {frames} encoded frame(s)", "raise data.min_crop_s")
        shifts_B = torch.randint(
            self.max_shift + 1, (rows,), generator=generator(seed, batch.position, 0, "shift", device), device=device
        )
        negatives_BTN = sample_negatives(
            rows,
            frames,
            num=self.num_negatives,
            generator=generator(seed, batch.position, 0, "negatives", device),
        )
        return self.compare(model, batch, shifts_B, negatives_BTN)

    def compare(
        self,
        model: SpeechEncoder,
        batch: Batch,
        shifts_B: Int64[Tensor, " B"],
        negatives_BTN: Int64[Tensor, "B T N"],
    ) -> ObjectiveOutput:
        """The loss with shifts and negatives given.

        Args:
            model: The model that is trained.
            batch: Crops of one length.
            shifts_B: Encoded frames by which the teacher's input is moved, in [0, max_shift].
            negatives_BTN: Places of the negatives among the row's frames.
        """
        features_BTC = model.local(batch.waveform_BS).features_BTC
        encoded_BTD = model.encode(model.embed(model.normalise(features_BTC))).last_BTD
        predicted_BTF = self.predict(self.project(encoded_BTD))
        wanted_BTF = self.teach(batch, features_BTC, shifts_B, encoded_BTD.shape[1])
        each_T = torch.arange(wanted_BTF.shape[1], device=wanted_BTF.device)
        logits = contrastive_logits(
            predicted_BTF,
            wanted_BTF,
            each_T[None, :, None].expand(len(wanted_BTF), -1, -1),  # no two frames are the same
            negatives_BTN,
            temperature=self.temperature,
        )
        first = torch.zeros(negatives_BTN[..., 0].numel(), dtype=torch.int64, device=logits.device)
        loss_sum = functional.cross_entropy(logits.flatten(0, 1), first, reduction="sum")
        count = loss_sum.new_full((), float(first.numel()))
        unit_BTF = functional.normalize(wanted_BTF.float(), dim=-1) * math.sqrt(wanted_BTF.shape[-1])
        logs = {
            "objective/loss": Mean(loss_sum.detach(), count),
            "objective/accuracy_contrastive": Mean(num_first(logits), count),
            "objective/chance": Mean(count / (1 + self.num_negatives), count),
            "objective/output_std": Mean(count * frame_deviation(encoded_BTD), count),
            "target/std": Mean(count * frame_deviation(unit_BTF), count),
        }
        return ObjectiveOutput(loss_sum, count, logs)

    @torch.no_grad()
    def teach(
        self, batch: Batch, features_BTC: Float[Tensor, "B T C"], shifts_B: Int64[Tensor, " B"], frames: int
    ) -> Float[Tensor, "B T F"]:
        """The teacher's projected frames of the moved clean speech, back in their places.

        Args:
            batch: Crops of one length.
            features_BTC: The student's frontend's frames.
            shifts_B: Encoded frames by which each row is moved.
            frames: Encoded frames of a row.
        """
        teacher = self.target.model
        unit = teacher.clock.stride_samples // teacher.feature_clock.stride_samples
        moved_BTD = shifted(self.target.hear(batch, features_BTC), shifts_B * unit, self.max_shift * unit)
        heard_BTD = teacher.encode(moved_BTD).last_BTD
        places_BT = shifts_B[:, None] + torch.arange(frames, device=shifts_B.device)
        wanted: Tensor = self.teacher_project.module(gather_frames(heard_BTD, places_BT))
        return wanted


def shifted(x_BTD: Float[Tensor, "B T D"], shifts_B: Int64[Tensor, " B"], longest: int) -> Float[Tensor, "B U D"]:
    """Each row moved later by its own number of frames, zeros before and after, U = T + longest frames in all.

    Args:
        x_BTD: Frames.
        shifts_B: By how many frames each row is moved, in [0, longest].
        longest: Frames that every row grows by.
    """
    frames = x_BTD.shape[1]
    sources_BU = torch.arange(frames + longest, device=x_BTD.device) - shifts_B[:, None]
    inside_BU = (sources_BU >= 0) & (sources_BU < frames)
    moved_BUD = gather_frames(x_BTD, sources_BU.clamp(0, frames - 1))
    return torch.where(inside_BU[..., None], moved_BUD, 0)
