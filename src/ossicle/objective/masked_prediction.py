"""Prediction of the classes of masked frames: HuBERT (arXiv 2106.07447, section II) and BEST-RQ (arXiv 2202.01855)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from ossicle.core.batch import Batch, EncoderOutput, ObjectiveOutput
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.metrics import CodeUse, Mean, Metric
from ossicle.core.shapes import Float, Int64
from ossicle.layer.heads import Head, HeadFactory
from ossicle.layer.mask import MaskFactory
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.base import MaskingObjective, embed_masked
from ossicle.ops.codes import count_codes
from ossicle.ops.losses import feature_penalty, frame_deviation
from ossicle.ops.masking import gather_frames, unmasked_indices
from ossicle.target.base import DiscreteTarget


class MaskedPrediction(MaskingObjective):
    """Predicts the class of every masked frame from what surrounds it.

    loss sum = masked_weight * cross entropy summed over masked frames
    + unmasked_weight * cross entropy summed over the others
    + count * penalty_weight * mean square of the frontend's frames (arXiv 2106.07447, equations 1 and 2).
    The count is that of the frames in the first two sums; a term of weight 0 is neither counted nor computed.

    Args:
        target: Says the class of each frame.
        dim: Width of the encoder's frames (D).
        feature_dim: Channels of the frontend's frames (C).
        head: Builds the classifier, from ``dim`` and the target's ``num_classes``.
        mask: Builds what hides masked frames, from ``dim`` and ``feature_dim``.
        mask_start_probability: Probability that a frame starts a masked span.
        mask_length: Frames of a span.
        masked_weight: Weight of masked frames, above 0.
        unmasked_weight: Weight of the other frames.
        penalty_weight: Weight of the mean square of the frontend's frames; 0 where the frontend learns nothing.

    Raises:
        ConfigError: ``masked_weight`` is not above 0, or the target has no classes.
    """

    reads_layers = False
    """Whether :meth:`judge_layers` reads the output of every layer."""

    def __init__(
        self,
        target: DiscreteTarget,
        dim: int,
        feature_dim: int,
        *,
        head: HeadFactory,
        mask: MaskFactory,
        mask_start_probability: float = 0.08,
        mask_length: int = 10,
        masked_weight: float = 1.0,
        unmasked_weight: float = 0.0,
        penalty_weight: float = 10.0,
    ) -> None:
        super().__init__()
        if masked_weight <= 0:
            raise ConfigError(f"objective.masked_weight = {masked_weight} predicts nothing", "give it a weight above 0")
        if not isinstance(target, DiscreteTarget):
            raise ConfigError(
                f"masked prediction predicts classes, and {type(target).__name__} has none",
                "choose target=kmeans or target=random_projection",
            )
        self.target = target
        self.head = head(dim=dim, num_classes=target.num_classes)
        self.mask = mask(dim=dim, feature_dim=feature_dim)
        self.mask_start_probability = mask_start_probability
        self.mask_length = mask_length
        self.masked_weight = masked_weight
        self.unmasked_weight = unmasked_weight
        self.penalty_weight = penalty_weight

    @override
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        return self.predict(model, batch, self.draw_masks(model, batch, seed=seed), seed=seed)

    def predict(
        self, model: SpeechEncoder, batch: Batch, masked_BM: Int64[Tensor, "B M"], *, seed: int
    ) -> ObjectiveOutput:
        """The loss with masks given.

        Args:
            model: The model that is trained.
            batch: Crops of one length.
            masked_BM: Masked frames of each row.
            seed: The run's seed; determines the mask's noise.

        Raises:
            DataError: The target has another number of frames than the model.
        """
        with torch.no_grad():
            labels_BT = self.target(batch, model.clock)
        features_BTC = model.local(batch.waveform_BS).features_BTC
        frames = features_BTC.shape[1]
        if labels_BT.shape != features_BTC.shape[:2]:
            raise DataError(
                f"the target has labels of shape {tuple(labels_BT.shape)} for frames {tuple(features_BTC.shape[:2])}",
                "make the labels with the clock of this model's frontend",
            )
        embedded_BTD = embed_masked(self.mask, model, model.normalise(features_BTC), masked_BM, batch, seed=seed)
        # frames and layers are asked for only where they are read: the one costs operations, the other memory
        read_BM = None if self.unmasked_weight or self.reads_layers else masked_BM
        output = model.encode(embedded_BTD, read_BM=read_BM, layers=self.reads_layers)
        masked_BMD = gather_frames(output.last_BTD, masked_BM) if read_BM is None else output.last_BTD
        masked = self._classify(masked_BMD, labels_BT, masked_BM)
        loss_sum, count = self.masked_weight * masked.loss_sum, masked.count
        logs: dict[str, Metric] = {
            "objective/accuracy_masked": Mean(masked.num_right, masked.count),
            "objective/codes": CodeUse(masked.predicted_V),
            "target/codes": CodeUse(masked.wanted_V),
        }
        if self.unmasked_weight:
            seen_BM = unmasked_indices(masked_BM, frames)
            seen = self._classify(gather_frames(output.last_BTD, seen_BM), labels_BT, seen_BM)
            loss_sum, count = loss_sum + self.unmasked_weight * seen.loss_sum, count + seen.count
            logs["objective/accuracy_unmasked"] = Mean(seen.num_right, seen.count)
        if self.penalty_weight:
            penalty = feature_penalty(features_BTC)
            loss_sum = loss_sum + count * self.penalty_weight * penalty
            logs["objective/feature_penalty"] = Mean(count * penalty.detach(), count)
        layers_sum, layers_logs = self.judge_layers(output, labels_BT, masked_BM)
        loss_sum, logs = loss_sum + layers_sum, logs | dict(layers_logs)
        logs["objective/output_std"] = Mean(count * frame_deviation(output.last_BTD), count)
        logs["objective/loss"] = Mean(loss_sum.detach(), count)
        return ObjectiveOutput(loss_sum, count, logs)

    def judge_layers(
        self, output: EncoderOutput, labels_BT: Int64[Tensor, "B T"], masked_BM: Int64[Tensor, "B M"]
    ) -> tuple[Tensor, Mapping[str, Metric]]:
        """What layers below the output add to the loss sum, and what is logged of them: nothing here."""
        del output, masked_BM
        return torch.zeros((), device=labels_BT.device), {}

    def _classify(
        self, encoded_BMD: Float[Tensor, "B M D"], labels_BT: Int64[Tensor, "B T"], frames_BM: Int64[Tensor, "B M"]
    ) -> "Scored":
        return score(self.head, encoded_BMD.flatten(0, 1), labels_BT.gather(1, frames_BM).flatten())


@dataclass(frozen=True, slots=True)
class Scored:
    """What a head makes of some frames, each with its weight: cross entropy, how many were right, and the classes."""

    loss_sum: Tensor
    count: Tensor
    num_right: Tensor
    predicted_V: Tensor
    wanted_V: Tensor


def score(
    head: Head, frames_PD: Float[Tensor, "P D"], wanted_P: Int64[Tensor, " P"], weights_P: Tensor | None = None
) -> Scored:
    """Hold a head's logits against classes.

    Args:
        head: Scores classes.
        frames_PD: Frames in one list.
        wanted_P: Their classes.
        weights_P: Weight of each frame, float, in all sums and counts; None for 1.
    """
    logits_PV = head(frames_PD)
    predicted_P = logits_PV.detach().argmax(-1)
    right_P = predicted_P == wanted_P
    if weights_P is None:
        loss_sum = functional.cross_entropy(logits_PV, wanted_P, reduction="sum")
        count, num_right = torch.full((), float(wanted_P.numel()), device=logits_PV.device), right_P.sum()
    else:
        loss_sum = (functional.cross_entropy(logits_PV, wanted_P, reduction="none") * weights_P).sum()
        count, num_right = weights_P.sum(), (right_P * weights_P).sum()
    return Scored(
        loss_sum=loss_sum,
        count=count,
        num_right=num_right,
        predicted_V=count_codes(predicted_P, head.num_classes, weights_P),
        wanted_V=count_codes(wanted_P, head.num_classes, weights_P),
    )
