"""Prediction of a teacher's codes where frames are masked: DinoSR (arXiv 2305.10005), SpidR (arXiv 2512.20308)."""

from abc import abstractmethod
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.batch import Batch, EncoderOutput, ObjectiveOutput
from ossicle.core.errors import ConfigError
from ossicle.core.metrics import CodeUse, Mean, Metric
from ossicle.core.shapes import Float, Int64
from ossicle.layer.mask import MaskFactory
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.base import MaskingObjective, TaughtObjective, embed_masked
from ossicle.ops.codes import count_groups
from ossicle.ops.losses import frame_deviation
from ossicle.ops.masking import gather_frames, unmasked_indices
from ossicle.target.online_codebook import OnlineCodebook


class MaskedCodebooks(TaughtObjective[OnlineCodebook], MaskingObjective):
    """Predicts the code of every masked frame in each of the teacher's layers; subclasses say from what.

    loss sum = cross entropy, averaged over the codebooks and summed over masked frames (and over the others, times
    ``unmasked_weight``). The count is that of the frames in the sum.

    Args:
        target: The teacher with its codebooks.
        dim: Width of the encoder's frames (D).
        feature_dim: Channels of the frontend's frames (C).
        mask: Builds what hides masked frames, from ``dim`` and ``feature_dim``.
        mask_start_probability: Probability that a frame starts a masked span.
        mask_length: Frames of a span.
        unmasked_weight: Weight of frames that are not masked.

    Raises:
        ConfigError: The target has no codebooks.
    """

    reads_layers = False
    """Whether :meth:`logits` reads the output of every layer."""

    def __init__(
        self,
        target: OnlineCodebook,
        dim: int,
        feature_dim: int,
        *,
        mask: MaskFactory,
        mask_start_probability: float = 0.08,
        mask_length: int = 10,
        unmasked_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(target, OnlineCodebook):
            raise ConfigError(
                f"this objective predicts a teacher's codes, and {type(target).__name__} has none",
                "set target=online_codebook",
            )
        self.target = target
        self.mask = mask(dim=dim, feature_dim=feature_dim)
        self.mask_start_probability = mask_start_probability
        self.mask_length = mask_length
        self.unmasked_weight = unmasked_weight
        self.heads = self.make_heads(dim)

    @abstractmethod
    def make_heads(self, dim: int) -> nn.Module:
        """What scores codes, from frames of this width."""

    @abstractmethod
    def logits(self, encoded: EncoderOutput, frames_BM: Int64[Tensor, "B M"] | None) -> Float[Tensor, "K P V"]:
        """Scores of the codes for some frames of each row, float32.

        Args:
            encoded: What the encoder made of the masked frames; every layer's output where ``reads_layers``.
            frames_BM: The frames that are scored, P = B * M of them; None for all that the encoder returned.
        """

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
        """
        features_BTC = model.local(batch.waveform_BS).features_BTC
        wanted_KBT = self.target.codes(batch, features_BTC, masked_BM)
        embedded_BTD = embed_masked(self.mask, model, model.normalise(features_BTC), masked_BM, batch, seed=seed)
        alone = not (self.reads_layers or self.unmasked_weight)
        encoded = model.encode(embedded_BTD, read_BM=masked_BM if alone else None, layers=self.reads_layers)
        loss_sum, right, predicted_KP, chosen_KP = self._classify(encoded, wanted_KBT, masked_BM, alone=alone)
        count = loss_sum.new_full((), float(masked_BM.numel()))
        logs: dict[str, Metric] = {
            "objective/accuracy_masked": Mean(right, count),
            "objective/codes": CodeUse(count_groups(predicted_KP.T, self.target.num_codes)),
            "target/codes": CodeUse(count_groups(chosen_KP.T, self.target.num_codes)),
        }
        if self.unmasked_weight:
            seen = unmasked_indices(masked_BM, features_BTC.shape[1])
            more, known, _, _ = self._classify(encoded, wanted_KBT, seen)
            logs["objective/accuracy_unmasked"] = Mean(known, loss_sum.new_full((), float(seen.numel())))
            loss_sum, count = loss_sum + self.unmasked_weight * more, count + seen.numel()
        logs["objective/output_std"] = Mean(count * frame_deviation(encoded.last_BTD), count)
        logs["objective/loss"] = Mean(loss_sum.detach(), count)
        return ObjectiveOutput(loss_sum, count, logs)

    def _classify(
        self,
        encoded: EncoderOutput,
        wanted_KBT: Int64[Tensor, "K B T"],
        frames_BM: Int64[Tensor, "B M"],
        *,
        alone: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss sum, frames that are right (averaged over codebooks), predicted and wanted codes (K, P).

        ``alone`` says that the encoder returned these frames and no others.
        """
        logits_KPV = self.logits(encoded, None if alone else frames_BM)
        chosen_KP = wanted_KBT.gather(2, frames_BM.expand(len(wanted_KBT), -1, -1)).flatten(1)
        loss_sum = functional.cross_entropy(logits_KPV.flatten(0, 1), chosen_KP.flatten(), reduction="sum")
        predicted_KP = logits_KPV.detach().argmax(-1)
        right = (predicted_KP == chosen_KP).float().mean(0).sum()
        return loss_sum / len(chosen_KP), right, predicted_KP, chosen_KP


@final
class LastLayerCodebooks(MaskedCodebooks):
    """DinoSR: the last layer predicts the codes of all of the teacher's layers, one linear map each (section 3.3).

    The arguments are those of :class:`MaskedCodebooks`.
    """

    @override
    def make_heads(self, dim: int) -> nn.Linear:
        return nn.Linear(dim, self.target.top_layers * self.target.num_codes)

    @override
    def logits(self, encoded: EncoderOutput, frames_BM: Int64[Tensor, "B M"] | None) -> Float[Tensor, "K P V"]:
        heard_BMD = encoded.last_BTD if frames_BM is None else gather_frames(encoded.last_BTD, frames_BM)
        scores: Tensor = self.heads(heard_BMD.flatten(0, 1))
        return scores.float().unflatten(1, (self.target.top_layers, -1)).transpose(0, 1)


@final
class LayerwiseCodebooks(MaskedCodebooks):
    """SpidR: each of the student's last layers predicts the codes of the teacher's layer of its height.

    The last head hears what the encoder returns, so that all of it is trained: what follows the last block too, such as
    a norm where norms stand first, or the map back up to the frame rate.

    The arguments are those of :class:`MaskedCodebooks`.
    """

    reads_layers = True

    @override
    def make_heads(self, dim: int) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(dim, self.target.num_codes) for _ in range(self.target.top_layers))

    @override
    def logits(self, encoded: EncoderOutput, frames_BM: Int64[Tensor, "B M"] | None) -> Float[Tensor, "K P V"]:
        assert frames_BM is not None, "every layer has all frames"
        heads = list(cast("nn.ModuleList", self.heads))
        layers = (*encoded.layers[-len(heads) : -1], encoded.last_BTD)
        scores = [
            head(gather_frames(layer, frames_BM).flatten(0, 1)).float()
            for head, layer in zip(heads, layers, strict=True)
        ]
        return torch.stack(scores)
