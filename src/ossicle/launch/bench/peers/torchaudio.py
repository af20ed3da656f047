"""torchaudio: HuBERTPretrainModel, as hubert_pretrain_base builds it."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.models import hubert_pretrain_model
from typing_extensions import override

from ossicle.launch.bench.peers.shape import LogMelFrames, Shape, conv_layers
from ossicle.launch.bench.peers.torch_step import TorchStep
from ossicle.launch.bench.steps import StepWork

NOTE = (
    "hubert_pretrain_base with its own masks, drawn in the step, its logits, the loss of the masked frames and 10 x the"
    " penalty on the frontend's frames, as its recipe adds them; the logits of other frames, which the recipe gives the"
    " weight 0, are not computed (skip_nomask)"
)


class _Frames(nn.Module):
    """Log-mel frames where torchaudio expects convolutions."""

    def __init__(self, frames: nn.Module) -> None:
        super().__init__()
        self.frames = frames

    @override
    def forward(self, waveform_BS: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.frames(waveform_BS), lengths_B


def model_of(shape: Shape) -> nn.Module:
    """The model, with the arguments of hubert_pretrain_base where the sizes are those of HuBERT Base."""
    return hubert_pretrain_model(
        extractor_mode="group_norm",
        extractor_conv_layer_config=conv_layers(shape),
        extractor_conv_bias=False,
        encoder_embed_dim=shape.dim,
        encoder_projection_dropout=shape.dropout,
        encoder_pos_conv_kernel=shape.position_kernel,
        encoder_pos_conv_groups=shape.position_groups,
        encoder_num_layers=shape.layers,
        encoder_num_heads=shape.heads,
        encoder_attention_dropout=shape.dropout,
        encoder_ff_interm_features=shape.ffn_dim,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=shape.dropout,
        encoder_layer_norm_first=shape.norm_first,
        encoder_layer_drop=shape.layer_drop,
        mask_prob=10 * shape.start_probability,  # stated by frames, not by starts
        mask_selection="static",
        mask_other=0.0,
        mask_length=10,
        no_mask_overlap=False,
        mask_min_space=1,
        mask_channel_prob=0.0,
        mask_channel_selection="static",
        mask_channel_other=0.0,
        mask_channel_length=10,
        no_mask_channel_overlap=False,
        mask_channel_min_space=1,
        skip_masked=False,
        skip_nomask=not shape.all_frames,
        num_classes=shape.classes,
        final_dim=shape.final_dim,
        feature_grad_mult=0.1 if shape.wave else None,
    )


def hubert(shape: Shape, work: StepWork) -> TorchStep:
    """HuBERTPretrainModel on one batch."""
    torch.manual_seed(work.seed)
    model = model_of(shape)
    if not shape.wave:
        model.get_submodule("wav2vec2").add_module("feature_extractor", _Frames(LogMelFrames(work.rate_hz)))
    model = model.to(work.device)
    waveform_BS = work.waveforms()
    labels_BT = shape.labels(work.batch, work.samples, work.seed, work.device)
    if work.compile:
        model.compile(mode=work.compile_mode)

    def loss() -> Tensor:
        masked_PV, others_PV, penalty = model(waveform_BS, labels_BT)
        scored = [logits_PV for logits_PV in (masked_PV, others_PV) if logits_PV is not None]
        # the true class stands first among the logits
        sums = [
            functional.cross_entropy(x_PV, x_PV.new_zeros(len(x_PV), dtype=torch.int64), reduction="sum")
            for x_PV in scored
        ]
        return sum(sums, start=sums[0].new_zeros(())) / sum(map(len, scored)) + (10 * penalty if shape.wave else 0)

    return TorchStep(model, loss, work, macs=shape.macs(work.samples), note=NOTE)
