"""Contrastive learning below, prediction of quantised frames above: w2v-BERT (arXiv 2108.06209, section 3)."""

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.batch import EncoderOutput
from ossicle.core.errors import ConfigError
from ossicle.core.metrics import CodeUse, Mean, Metric
from ossicle.core.shapes import Float, Int64
from ossicle.layer.mask import MaskFactory
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.contrastive import Contrastive
from ossicle.ops.codes import count_groups
from ossicle.ops.masking import gather_frames
from ossicle.target.base import Quantised, QuantisedTarget


@final
class ContrastiveMasked(Contrastive):
    """A lower layer tells the quantised frame that was masked from others; the last one predicts its code.

    loss sum = contrastive_weight * (the loss sum of :class:`~ossicle.objective.contrastive.Contrastive`, on the layer)
    + prediction_weight * cross entropy of the codes, averaged over the codebooks and summed over masked frames. No
    gradient passes from the codes into the quantiser: the contrastive loss alone shapes it.

    Args:
        target: Quantises the frontend's normalised frames.
        dim: Width of the encoder's frames (D).
        feature_dim: Channels of the frontend's frames (C).
        mask: Builds what hides masked frames, from ``dim`` and ``feature_dim``.
        contrastive_layer: The block whose output is compared with quantised frames, from 1.
        contrastive_weight: Weight of the contrastive loss, diversity and penalty included (beta).
        prediction_weight: Weight of the cross entropy (gamma).
        mask_start_probability: Probability that a frame starts a masked span.
        mask_length: Frames of a span.
        num_negatives: Negatives of each masked frame (N).
        final_dim: Width in which contexts and quantised frames are compared.
        temperature: Divides the cosine similarities.
        diversity_weight: Weight of the share of codes left unused (alpha).
        penalty_weight: Weight of the mean square of the frontend's frames; at 0 it is not computed.
        feature_dropout: Dropout of the frames that are quantised.
    """

    reads_layers = True

    def __init__(
        self,
        target: QuantisedTarget,
        dim: int,
        feature_dim: int,
        *,
        mask: MaskFactory,
        contrastive_layer: int = 12,
        contrastive_weight: float = 1.0,
        prediction_weight: float = 1.0,
        mask_start_probability: float = 0.065,
        mask_length: int = 10,
        num_negatives: int = 100,
        final_dim: int = 256,
        temperature: float = 0.1,
        diversity_weight: float = 0.1,
        penalty_weight: float = 0.0,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            target,
            dim,
            feature_dim,
            mask=mask,
            mask_start_probability=mask_start_probability,
            mask_length=mask_length,
            num_negatives=num_negatives,
            final_dim=final_dim,
            temperature=temperature,
            diversity_weight=diversity_weight,
            penalty_weight=penalty_weight,
            feature_dropout=feature_dropout,
        )
        self.contrastive_layer = contrastive_layer
        self.contrastive_weight = contrastive_weight
        self.prediction_weight = prediction_weight
        self.head = nn.Linear(dim, target.num_groups * target.num_codes)

    @override
    def adopt(self, model: SpeechEncoder) -> None:
        super().adopt(model)
        if not 1 <= self.contrastive_layer < model.num_layers:
            raise ConfigError(
                f"objective.contrastive_layer={self.contrastive_layer} of an encoder with {model.num_layers} layers"
                " leaves no layer to one of the two losses",
                f"it lies in [1, {model.num_layers - 1}]",
            )

    @override
    def context(self, encoded: EncoderOutput, masked_BM: Int64[Tensor, "B M"]) -> Float[Tensor, "B M D"]:
        return gather_frames(encoded.layers[self.contrastive_layer], masked_BM)

    @override
    def complete(
        self, loss_sum: Tensor, encoded: EncoderOutput, quantised: Quantised, masked_BM: Int64[Tensor, "B M"]
    ) -> tuple[Tensor, Mapping[str, Metric]]:
        scores: Tensor = self.head(gather_frames(encoded.last_BTD, masked_BM))
        scores_PGV = scores.float().unflatten(-1, (self.target.num_groups, -1)).flatten(0, 1)
        codes_PG = quantised.codes_BMG.flatten(0, 1)
        entropy = functional.cross_entropy(scores_PGV.flatten(0, 1), codes_PG.flatten(), reduction="sum")
        prediction = entropy / self.target.num_groups
        predicted_PG = scores_PGV.detach().argmax(-1)
        right = (predicted_PG == codes_PG).float().mean(-1).sum()
        count = loss_sum.new_full((), float(masked_BM.numel()))
        logs: dict[str, Metric] = {
            "objective/prediction": Mean(prediction.detach(), count),
            "objective/accuracy_masked": Mean(right, count),
            "objective/codes": CodeUse(count_groups(predicted_PG, self.target.num_codes)),
        }
        return self.contrastive_weight * loss_sum + self.prediction_weight * prediction, logs
