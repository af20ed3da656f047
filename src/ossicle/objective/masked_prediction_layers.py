"""Masked prediction at several layers: ILS-SSL (arXiv 2112.08778), Fast-HuBERT (2309.13860), MR-HuBERT (2310.02720)."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.batch import EncoderOutput
from ossicle.core.errors import ConfigError
from ossicle.core.metrics import CodeUse, Mean, Metric
from ossicle.core.shapes import Int64
from ossicle.layer.heads import Head, HeadFactory
from ossicle.layer.mask import MaskFactory
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.masked_prediction import MaskedPrediction, score
from ossicle.ops.masking import masked_flags
from ossicle.target.base import DiscreteTarget


@final
class MaskedPredictionLayers(MaskedPrediction):
    """Masked prediction at the output and, with a head each, at layers below it, each at its own frame rate.

    loss sum = that of the output (:class:`MaskedPrediction`) + layer_weight * the same cross entropies at each layer,
    summed; the count stays that of the output (arXiv 2112.08778, equation 4).

    A layer at a lower rate, as the middle of a hierarchical encoder is, predicts one class for each of its frames: that
    of the first of the output's frames that it stands for, and counts as masked where that frame is (the sub-sampled
    units of arXiv 2310.02720, section 3.2). Labels at 20 ms thus become labels at 40 ms.

    Args:
        target: Says the class of each frame.
        dim: Width of the encoder's frames (D).
        feature_dim: Channels of the frontend's frames (C).
        head: Builds a classifier, from ``dim`` and the target's ``num_classes``; each layer has its own.
        mask: Builds what hides masked frames, from ``dim`` and ``feature_dim``.
        layers: The layers that are supervised besides the output, from 1, the first block's output.
        layer_weight: Weight of each layer's sum.
        mask_start_probability: Probability that a frame starts a masked span.
        mask_length: Frames of a span.
        masked_weight: Weight of masked frames, above 0.
        unmasked_weight: Weight of the other frames.
        penalty_weight: Weight of the mean square of the frontend's frames; 0 where the frontend learns nothing.

    Raises:
        ConfigError: No layer, one twice, or a weight that is not above 0.
    """

    reads_layers = True

    def __init__(
        self,
        target: DiscreteTarget,
        dim: int,
        feature_dim: int,
        *,
        head: HeadFactory,
        mask: MaskFactory,
        layers: Sequence[int],
        layer_weight: float = 1.0,
        mask_start_probability: float = 0.08,
        mask_length: int = 10,
        masked_weight: float = 1.0,
        unmasked_weight: float = 0.0,
        penalty_weight: float = 10.0,
    ) -> None:
        super().__init__(
            target,
            dim,
            feature_dim,
            head=head,
            mask=mask,
            mask_start_probability=mask_start_probability,
            mask_length=mask_length,
            masked_weight=masked_weight,
            unmasked_weight=unmasked_weight,
            penalty_weight=penalty_weight,
        )
        if not layers or len(set(layers)) < len(layers) or layer_weight <= 0:
            raise ConfigError(
                f"objective.layers={list(layers)} with layer_weight={layer_weight} supervise nothing or one twice",
                "name different layers and a weight above 0, or take objective=masked_prediction",
            )
        self.layers = tuple(layers)
        self.layer_weight = layer_weight
        self.layer_heads = nn.ModuleList(head(dim=dim, num_classes=target.num_classes) for _ in layers)
        self.factors: tuple[int, ...] = ()

    @override
    def adopt(self, model: SpeechEncoder) -> None:
        super().adopt(model)
        for layer in self.layers:
            if not 1 <= layer < model.num_layers:
                raise ConfigError(
                    f"objective.layers: the encoder has no layer {layer} below its last, {model.num_layers}",
                    f"name layers from 1 to {model.num_layers - 1}; the output is supervised anyway",
                )
        self.factors = tuple(model.layer_factor(layer) for layer in self.layers)

    @override
    def judge_layers(
        self, output: EncoderOutput, labels_BT: Int64[Tensor, "B T"], masked_BM: Int64[Tensor, "B M"]
    ) -> tuple[Tensor, Mapping[str, Metric]]:
        flags_BT = masked_flags(masked_BM, labels_BT.shape[1])
        total = torch.zeros((), device=labels_BT.device)
        logs: dict[str, Metric] = {}
        for layer, factor, head in zip(self.layers, self.factors, self.layer_heads, strict=True):
            assert isinstance(head, Head)
            frames_PD = output.layers[layer][:, ::factor].flatten(0, 1)
            wanted_P, masked_P = labels_BT[:, ::factor].flatten(), flags_BT[:, ::factor].flatten().float()
            masked = score(head, frames_PD, wanted_P, masked_P)
            total = total + self.masked_weight * masked.loss_sum
            logs[f"objective/layer_{layer}/accuracy_masked"] = Mean(masked.num_right, masked.count)
            logs[f"objective/layer_{layer}/codes"] = CodeUse(masked.predicted_V)
            logs[f"objective/layer_{layer}/wanted"] = CodeUse(masked.wanted_V)
            if self.unmasked_weight:
                seen = score(head, frames_PD, wanted_P, 1 - masked_P)
                total = total + self.unmasked_weight * seen.loss_sum
        return self.layer_weight * total, logs
