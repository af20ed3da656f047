"""What objectives share that foresee frames from a causal context."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.batch import Batch, ObjectiveOutput
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.metrics import CodeUse, Mean, Metric
from ossicle.core.seeds import generator
from ossicle.core.shapes import Int64
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.base import Objective
from ossicle.ops.future import foreseen_scores, other_frames
from ossicle.ops.losses import frame_deviation
from ossicle.target.frames import Frames


class Foreseeing(Objective):
    """Predicts the frames that come, one map for each distance; subclasses say how predictions are judged.

    The model must be causal: one that hears what comes copies it, and learns nothing. Nothing is masked.

    Args:
        target: The frames that are foreseen.
        dim: Width of the encoder's frames (D).
        feature_dim: Channels of the frontend's frames (C).
        num_steps: Frames ahead, from 1 (K).
        num_negatives: Negatives of each frame that comes (N).
        across_rows: Whether negatives come from all rows of a micro-batch; else from the frame's own. The loss then
            depends on how a step's batch is shared out.

    Attributes:
        affine: Whether the maps have biases.

    Raises:
        ConfigError: No step or no negative, or a target that is not the frames.
    """

    takes_codes = True
    least_frames = 2
    affine: bool = False

    def __init__(
        self,
        target: Frames,
        dim: int,
        feature_dim: int,
        *,
        num_steps: int = 12,
        num_negatives: int = 10,
        across_rows: bool = False,
    ) -> None:
        super().__init__()
        if num_steps < 1 or num_negatives < 1:
            raise ConfigError(
                f"objective.num_steps={num_steps} with num_negatives={num_negatives} foresees nothing",
                "both are 1 or more",
            )
        if not isinstance(target, Frames):
            raise ConfigError(f"this objective foresees frames, not {type(target).__name__}", "set target=frames")
        self.target = target
        self.num_steps = num_steps
        self.num_negatives = num_negatives
        self.across_rows = across_rows
        self.predict = nn.Linear(dim, num_steps * feature_dim, bias=self.affine)
        # scores of frames of deviation one begin about one, whatever the widths: larger, a run must first unlearn them
        nn.init.normal_(self.predict.weight, std=(dim * feature_dim) ** -0.5)
        if self.predict.bias is not None:
            nn.init.zeros_(self.predict.bias)

    @override
    def adopt(self, model: SpeechEncoder) -> None:
        if model.clock != model.feature_clock:
            raise ConfigError("the encoder shortens: what comes is not on its clock", "choose another encoder")
        if not model.causal:
            raise ConfigError(
                "the model hears what comes, and would copy what it is to foresee",
                "choose a causal encoder, encoder=recurrent or encoder=convolutional, and a frontend that normalises"
                " nothing over the row: frontend.norm=running or global for log-mel, frontend=wave_cpc or"
                " wave_layer_norm",
            )

    @override
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        rows, samples = batch.waveform_BS.shape
        frames = model.clock.num_frames(samples)
        if frames < 2:
            raise DataError(f"crops of {samples} samples have one frame", "raise data.min_crop_s")
        draws = generator(seed, batch.position, 0, "negatives", batch.waveform_BS.device)
        negatives_BTN = other_frames(
            rows, frames, num=self.num_negatives, generator=draws, across_rows=self.across_rows
        )
        return self.compare(model, batch, negatives_BTN)

    def compare(self, model: SpeechEncoder, batch: Batch, negatives_BTN: Int64[Tensor, "B T N"]) -> ObjectiveOutput:
        """The loss with negatives given.

        Args:
            model: The model that is trained.
            batch: Crops of one length.
            negatives_BTN: Negatives of each frame that may come, in its row, or counted through all rows.
        """
        local = model.local(batch.waveform_BS)
        features_BTC = local.features_BTC
        context_BTD = model.encode(model.embed(model.normalise(features_BTC))).last_BTD
        predicted_BTKC = self.predict(context_BTD).unflatten(2, (self.num_steps, features_BTC.shape[2]))
        foreseen_BTC = self.target(features_BTC)
        right, wrong = foreseen_scores(predicted_BTKC, foreseen_BTC, negatives_BTN, across_rows=self.across_rows)
        loss_sum = torch.stack([self.judge(r, w).sum() for r, w in zip(right, wrong, strict=True)]).sum()
        count = torch.full((), float(sum(r.numel() for r in right)), device=loss_sum.device)
        best = torch.stack([found(r, w).sum() for r, w in zip(right, wrong, strict=True)]).sum()
        logs: dict[str, Metric] = {
            "objective/accuracy_foreseen": Mean(best, count),
            "objective/chance": Mean(count / (1 + self.num_negatives), count),
            "objective/output_std": Mean(count * frame_deviation(context_BTD), count),
            "target/frame_std": Mean(count * frame_deviation(features_BTC), count),
        }
        if local.penalty is not None and local.code_counts_GV is not None:
            loss_sum = loss_sum + count * local.penalty
            logs["objective/code_penalty"] = Mean(count * local.penalty.detach(), count)
            logs["target/codes"] = CodeUse(local.code_counts_GV)
        logs["objective/loss"] = Mean(loss_sum.detach(), count)
        return ObjectiveOutput(loss_sum, count, logs)

    @abstractmethod
    def judge(self, right_BT: Tensor, wrong_BTN: Tensor) -> Tensor:
        """Loss of each prediction, shape (B, T), from the scores of the true frame and of its negatives."""


def found(right_BT: Tensor, wrong_BTN: Tensor) -> Tensor:
    """How likely the true frame is chosen, shape (B, T): 1 where it scores highest, a share where others score as high.

    Frames of one code do. Where all are of one code, that is what chance finds.

    Args:
        right_BT: Scores of the true frame.
        wrong_BTN: Scores of its negatives.
    """
    same_BT = (wrong_BTN == right_BT[..., None]).sum(-1)
    return (right_BT >= wrong_BTN.amax(-1)) / (1 + same_BT)
