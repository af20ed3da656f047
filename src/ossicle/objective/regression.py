"""Regression of a teacher's frames where the student's are masked: data2vec (arXiv 2202.03555, section 3.4)."""

from typing import final

from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.batch import Batch, ObjectiveOutput
from ossicle.core.errors import ConfigError
from ossicle.core.metrics import Mean, Metric
from ossicle.core.shapes import Int64
from ossicle.layer.mask import MaskFactory
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.base import MaskingObjective, TaughtObjective, embed_masked, require_teacher
from ossicle.ops.losses import frame_deviation, regression_loss
from ossicle.ops.masking import gather_frames, unmasked_indices
from ossicle.target.base import Teacher


@final
class Regression(TaughtObjective[Teacher], MaskingObjective):
    """Predicts what a teacher that hears everything makes of the frames that the student does not hear.

    loss sum = over masked frames (and over the others, times ``unmasked_weight``), the squared distance of prediction
    and target (a smooth L1 distance where beta is above 0), summed over the target's channels and divided by the root
    of their number. The count is that of the frames in the sum.

    Args:
        target: The teacher.
        dim: Width of the encoder's frames (D).
        feature_dim: Channels of the frontend's frames (C).
        mask: Builds what hides masked frames, from ``dim`` and ``feature_dim``.
        mask_start_probability: Probability that a frame starts a masked span.
        mask_length: Frames of a span.
        beta: Distance at which the loss turns from square to linear (equation 3); 0 for the square throughout.
        unmasked_weight: Weight of frames that are not masked.

    Raises:
        ConfigError: The target is no teacher, or has codebooks, or a weight is below 0.
    """

    def __init__(
        self,
        target: Teacher,
        dim: int,
        feature_dim: int,
        *,
        mask: MaskFactory,
        mask_start_probability: float = 0.065,
        mask_length: int = 10,
        beta: float = 0.0,
        unmasked_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.target = require_teacher(target)
        if beta < 0 or unmasked_weight < 0:
            raise ConfigError(f"objective.beta={beta}, unmasked_weight={unmasked_weight}", "both are 0 or more")
        self.mask = mask(dim=dim, feature_dim=feature_dim)
        self.mask_start_probability = mask_start_probability
        self.mask_length = mask_length
        self.beta = beta
        self.unmasked_weight = unmasked_weight
        self.predict = nn.Linear(dim, target.dim or dim)

    @override
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        return self.regress(model, batch, self.draw_masks(model, batch, seed=seed), seed=seed)

    def regress(
        self, model: SpeechEncoder, batch: Batch, masked_BM: Int64[Tensor, "B M"], *, seed: int
    ) -> ObjectiveOutput:
        """The loss with masks given.

        Args:
            model: The model that is trained.
            batch: Crops of one length.
            masked_BM: Masked frames of each row.
            seed: The run's seed; determines the mask's noise.
        """
        features_BTC = model.local(batch.waveform_BS).features_BTC
        wanted_BTD = self.target(batch, features_BTC)
        embedded_BTD = embed_masked(self.mask, model, model.normalise(features_BTC), masked_BM, batch, seed=seed)
        encoded_BTD = model.encode(embedded_BTD, read_BM=None if self.unmasked_weight else masked_BM).last_BTD
        heard_BMD = gather_frames(encoded_BTD, masked_BM) if self.unmasked_weight else encoded_BTD
        predicted_BMD = self.predict(heard_BMD)
        loss_sum = regression_loss(predicted_BMD, gather_frames(wanted_BTD, masked_BM), beta=self.beta)
        count = loss_sum.new_full((), float(masked_BM.numel()))
        if self.unmasked_weight:
            seen = unmasked_indices(masked_BM, features_BTC.shape[1])
            known = regression_loss(
                self.predict(gather_frames(encoded_BTD, seen)), gather_frames(wanted_BTD, seen), beta=self.beta
            )
            loss_sum, count = loss_sum + self.unmasked_weight * known, count + seen.numel()
        logs: dict[str, Metric] = {
            "objective/loss": Mean(loss_sum.detach(), count),
            "objective/prediction_std": Mean(count * frame_deviation(predicted_BMD), count),
            "objective/output_std": Mean(count * frame_deviation(encoded_BTD), count),
            "target/std": Mean(count * frame_deviation(wanted_BTD), count),
        }
        return ObjectiveOutput(loss_sum, count, logs)
