"""Regression of a teacher from many maskings of one utterance: data2vec 2.0 (arXiv 2212.07525, section 3)."""

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.core.batch import Batch, ObjectiveOutput
from ossicle.core.errors import ConfigError
from ossicle.core.metrics import Mean
from ossicle.core.seeds import generator
from ossicle.core.shapes import Int64
from ossicle.layer.decoder import DecoderFactory
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.base import MaskingObjective, TaughtObjective, require_teacher
from ossicle.ops.losses import frame_deviation, regression_loss
from ossicle.ops.masking import gather_frames, masked_flags, unmasked_indices
from ossicle.target.base import Teacher


@final
class RegressionMultimask(TaughtObjective[Teacher], MaskingObjective):
    """Predicts a teacher's frames from several maskings of each utterance, of which only unmasked frames are encoded.

    The frontend and the teacher hear an utterance once, whatever the number of its maskings; the encoder's blocks see
    the unmasked frames alone, and a light decoder fills in the rest. loss sum = that of
    :class:`~ossicle.objective.regression.Regression`, over the masked frames of all maskings; the count is theirs.

    Args:
        target: The teacher.
        dim: Width of the encoder's frames (D).
        feature_dim: Channels of the frontend's frames (C).
        decoder: Builds what fills in masked frames, from ``dim`` and the teacher's width.
        num_masks: Maskings of each utterance.
        mask_start_probability: Probability that a frame starts a masked span.
        mask_length: Frames of a span.
        beta: Distance at which the loss turns from square to linear; 0 for the square throughout.

    Raises:
        ConfigError: The target is no teacher, or has codebooks, or there is no masking.
    """

    def __init__(
        self,
        target: Teacher,
        dim: int,
        feature_dim: int,
        *,
        decoder: DecoderFactory,
        num_masks: int = 8,
        mask_start_probability: float = 0.1294,
        mask_length: int = 5,
        beta: float = 0.0,
    ) -> None:
        super().__init__()
        del feature_dim
        self.target = require_teacher(target)
        if num_masks < 1 or beta < 0:
            raise ConfigError(f"objective.num_masks={num_masks}, beta={beta}", "at least one masking, beta 0 or more")
        self.decoder = decoder(dim=dim, out_dim=target.dim or dim)
        self.num_masks = num_masks
        self.mask_start_probability = mask_start_probability
        self.mask_length = mask_length
        self.beta = beta

    @override
    def adopt(self, model: SpeechEncoder) -> None:
        if not model.drops_frames:
            raise ConfigError(
                "this objective encodes unmasked frames alone, and a block of this encoder would take those that are"
                " left for neighbours",
                "set encoder=transformer and mixer=alibi_attention, rotary, relative_attention, disentangled_attention,"
                " attention, linear_attention, polynomial or summary; or objective=regression",
            )
        super().adopt(model)

    @override
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        masked_RM = self.draw_masks(model, batch, seed=seed, clones=self.num_masks)
        return self.regress(model, batch, masked_RM, seed=seed)

    def regress(
        self, model: SpeechEncoder, batch: Batch, masked_RM: Int64[Tensor, "R M"], *, seed: int
    ) -> ObjectiveOutput:
        """The loss with masks given.

        Args:
            model: The model that is trained.
            batch: Crops of one length.
            masked_RM: Masked frames of each masking; those of an utterance lie next to each other.
            seed: The run's seed; determines the decoder's noise.
        """
        features_BTC = model.local(batch.waveform_BS).features_BTC
        wanted_BTD = self.target(batch, features_BTC)
        rows, frames = features_BTC.shape[:2]
        clones = len(masked_RM) // rows
        x_RTD = model.embed(model.normalise(features_BTC)).repeat_interleave(clones, 0)
        # the position convolution sees all places: it must find nothing at those that are masked
        x_RTD = torch.where(masked_flags(masked_RM, frames).unsqueeze(-1), 0, x_RTD)
        kept_RM = unmasked_indices(masked_RM, frames)
        encoded_RMD = model.encode(x_RTD, kept_BM=kept_RM).last_BTD
        noise = generator(seed, batch.position, 0, "decoder", x_RTD.device)
        predicted_RMD = gather_frames(self.decoder(encoded_RMD, kept_RM, frames, noise), masked_RM)
        # an utterance's frames are looked up for all of its maskings at once: they are not copied for each
        wanted_RMD = gather_frames(wanted_BTD, masked_RM.view(rows, -1)).view(len(masked_RM), -1, wanted_BTD.shape[-1])
        loss_sum = regression_loss(predicted_RMD, wanted_RMD, beta=self.beta)
        count = loss_sum.new_full((), float(masked_RM.numel()))
        logs = {
            "objective/loss": Mean(loss_sum.detach(), count),
            "objective/prediction_std": Mean(count * frame_deviation(predicted_RMD), count),
            "objective/output_std": Mean(count * frame_deviation(encoded_RMD), count),
            "target/std": Mean(count * frame_deviation(wanted_BTD), count),
        }
        return ObjectiveOutput(loss_sum, count, logs)
