"""Contrastive learning over quantised frames: wav2vec 2.0 (arXiv 2006.11477, section 3)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.batch import Batch, EncoderOutput, ObjectiveOutput
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.metrics import CodeUse, Mean, Metric
from ossicle.core.seeds import generator
from ossicle.core.shapes import Float, Int64
from ossicle.layer.mask import MaskFactory
from ossicle.layer.projection import ProjectionFactory
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.base import MaskingObjective, embed_masked
from ossicle.ops.losses import contrastive_logits, diversity_loss, feature_penalty, frame_deviation
from ossicle.ops.masking import gather_frames
from ossicle.ops.negatives import sample_negatives
from ossicle.target.base import Quantised, QuantisedTarget


class Contrastive(MaskingObjective):
    """Picks the quantised frame that was masked among quantised frames that were masked elsewhere in the utterance.

    loss sum = cross entropy summed over the B * M masked frames
    + B * M * (diversity_weight * diversity + penalty_weight * mean square of the frontend's frames).

    Args:
        target: Quantises the frontend's normalised frames.
        dim: Width of the encoder's frames (D).
        feature_dim: Channels of the frontend's frames (C).
        mask: Builds what hides masked frames, from ``dim`` and ``feature_dim``.
        mask_start_probability: Probability that a frame starts a masked span.
        mask_length: Frames of a span.
        num_negatives: Negatives of each masked frame (N).
        projection: Builds what takes contexts, and what takes quantised frames, to ``final_dim``.
        final_dim: Width in which contexts and quantised frames are compared.
        temperature: Divides the cosine similarities.
        diversity_weight: Weight of the share of codes left unused (equation 4).
        penalty_weight: Weight of the mean square of the frontend's frames; at 0 it is not computed.
        feature_dropout: Dropout of the frames that are quantised.

    Raises:
        ConfigError: The target quantises nothing, or there is no negative or no temperature.
    """

    least_masked = 2

    reads_layers = False
    """Whether :meth:`context` reads the output of another layer than the last."""

    def __init__(
        self,
        target: QuantisedTarget,
        dim: int,
        feature_dim: int,
        *,
        mask: MaskFactory,
        projection: ProjectionFactory = nn.Linear,
        mask_start_probability: float = 0.065,
        mask_length: int = 10,
        num_negatives: int = 100,
        final_dim: int = 256,
        temperature: float = 0.1,
        diversity_weight: float = 0.1,
        penalty_weight: float = 10.0,
        feature_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not isinstance(target, QuantisedTarget):
            raise ConfigError(
                f"contrastive learning tells quantised frames apart, and {type(target).__name__} quantises none",
                "choose target=gumbel, or objective=masked_prediction for targets of classes",
            )
        if num_negatives < 1 or temperature <= 0:
            raise ConfigError(
                f"objective.num_negatives={num_negatives} with temperature={temperature} tells nothing apart",
                "give one negative at least, and a temperature above 0",
            )
        self.target = target
        self.mask = mask(dim=dim, feature_dim=feature_dim)
        self.mask_start_probability = mask_start_probability
        self.mask_length = mask_length
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.diversity_weight = diversity_weight
        self.penalty_weight = penalty_weight
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.project_context = projection(dim, final_dim)
        self.project_quantised = projection(target.dim, final_dim)

    @override
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        rows, samples = batch.waveform_BS.shape
        masked_BM = self.draw_masks(model, batch, seed=seed)
        if masked_BM.shape[1] < 2:
            raise DataError(
                f"crops of {samples} samples have {masked_BM.shape[1]} masked frame(s), and no other to tell it from",
                "raise data.min_crop_s or objective.mask_start_probability",
            )
        negatives_BMN = sample_negatives(
            rows,
            masked_BM.shape[1],
            num=self.num_negatives,
            generator=generator(seed, batch.position, 0, "negatives", batch.waveform_BS.device),
        )
        return self.compare(model, batch, masked_BM, negatives_BMN, seed=seed, step=step)

    def compare(
        self,
        model: SpeechEncoder,
        batch: Batch,
        masked_BM: Int64[Tensor, "B M"],
        negatives_BMN: Int64[Tensor, "B M N"],
        *,
        seed: int,
        step: int,
    ) -> ObjectiveOutput:
        """The loss with masks and negatives given.

        Args:
            model: The model that is trained.
            batch: Crops of one length.
            masked_BM: Masked frames of each row.
            negatives_BMN: Places of the negatives among the row's masked frames.
            seed: The run's seed; determines the quantiser's and the mask's noise.
            step: Optimiser steps taken so far.
        """
        features_BTC = model.local(batch.waveform_BS).features_BTC
        normalised_BTC = model.normalise(features_BTC)
        hidden_BMC = self.feature_dropout(gather_frames(normalised_BTC, masked_BM))
        quantised = self.target(hidden_BMC, seed=seed, position=batch.position, step=step)
        embedded_BTD = embed_masked(self.mask, model, normalised_BTC, masked_BM, batch, seed=seed)
        read_BM = None if self.reads_layers else masked_BM
        encoded = model.encode(embedded_BTD, read_BM=read_BM, layers=self.reads_layers)
        loss_sum, logs = self.tell_apart(self.context(encoded, masked_BM), quantised, negatives_BMN)
        count = loss_sum.new_full((), float(masked_BM.numel()))
        if self.penalty_weight:
            penalty = feature_penalty(features_BTC)
            loss_sum = loss_sum + count * self.penalty_weight * penalty
            logs["objective/feature_penalty"] = Mean(count * penalty.detach(), count)
        loss_sum, more = self.complete(loss_sum, encoded, quantised, masked_BM)
        logs["objective/output_std"] = Mean(count * frame_deviation(encoded.last_BTD), count)
        return ObjectiveOutput(loss_sum, count, {"objective/loss": Mean(loss_sum.detach(), count), **logs, **more})

    def context(self, encoded: EncoderOutput, masked_BM: Int64[Tensor, "B M"]) -> Float[Tensor, "B M D"]:
        """The masked frames that say what they were: those of the last layer here.

        Args:
            encoded: Every layer's output where ``reads_layers``; else the masked frames of the last alone.
            masked_BM: Masked frames of each row.
        """
        del masked_BM
        return encoded.last_BTD

    def complete(
        self, loss_sum: Tensor, encoded: EncoderOutput, quantised: Quantised, masked_BM: Int64[Tensor, "B M"]
    ) -> tuple[Tensor, Mapping[str, Metric]]:
        """The loss sum with what is learned besides, and what is logged of that: nothing here.

        Args:
            loss_sum: Sum of the contrastive and the diversity loss and of the penalty.
            encoded: What the encoder made of the masked frames; every layer's output where ``reads_layers``.
            quantised: What the quantiser made of them.
            masked_BM: Masked frames of each row.
        """
        del encoded, quantised, masked_BM
        return loss_sum, {}

    def tell_apart(
        self,
        context_BMD: Float[Tensor, "B M D"],
        quantised: Quantised,
        negatives_BMN: Int64[Tensor, "B M N"],
    ) -> tuple[Tensor, dict[str, Metric]]:
        """Sum of the contrastive and the diversity loss, and what is logged of them.

        Args:
            context_BMD: Masked frames that say what they were.
            quantised: What the quantiser made of the masked frames.
            negatives_BMN: Places of the negatives among the row's masked frames.
        """
        logits = contrastive_logits(
            self.project_context(context_BMD),
            self.project_quantised(quantised.vectors_BMD),
            quantised.codes_BMG,
            negatives_BMN,
            temperature=self.temperature,
        )
        first = torch.zeros(logits[..., 0].numel(), dtype=torch.int64, device=logits.device)
        contrastive = functional.cross_entropy(logits.flatten(0, 1), first, reduction="sum")
        count = torch.full((), float(first.numel()), device=logits.device)
        diversity = diversity_loss(quantised.code_probabilities_GV)
        logs: dict[str, Metric] = {
            "objective/contrastive": Mean(contrastive.detach(), count),
            "objective/diversity": Mean(count * diversity.detach(), count),
            "objective/accuracy_contrastive": Mean(num_first(logits), count),
            "objective/chance": Mean(count / (1 + self.num_negatives), count),
            "target/codes": CodeUse(quantised.code_counts_GV),
        }
        return contrastive + count * self.diversity_weight * diversity, logs


def num_first(logits: Tensor) -> Tensor:
    """How many rows of logits have their largest entry first, and nowhere else."""
    others = logits[..., 1:].max(-1).values
    return (logits[..., 0] > others).sum()
