"""Hugging Face transformers: HubertModel, and Wav2Vec2ForPreTraining."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError, MissingExtraError
from ossicle.launch.bench.peers.shape import KERNELS, STRIDES, LogMelFrames, Shape
from ossicle.launch.bench.peers.torch_step import TorchStep
from ossicle.launch.bench.steps import StepWork
from ossicle.layer.heads import CosineHead

if TYPE_CHECKING:
    from transformers import HubertModel

HUBERT_NOTE = (
    "HubertModel with a given mask (drawn once), and the cross entropy of the masked frames by the cosine head of"
    " Ossicle, for transformers has none; without the penalty on the frontend's frames and the scaling of its gradient"
)
WAV2VEC2_NOTE = (
    "Wav2Vec2ForPreTraining with its own loss over 100 negatives: another objective than the others; masks and"
    " negatives are drawn once, as the collator of its example draws them beforehand"
)
_NEGATIVES = 100


class HubertWithHead(nn.Module):
    """HubertModel and a classifier of its masked frames.

    Args:
        model: A HubertModel.
        shape: The sizes.
    """

    def __init__(self, model: "HubertModel", shape: Shape) -> None:
        super().__init__()
        self.hubert = model
        self.head = CosineHead(shape.dim, shape.classes, final_dim=shape.final_dim)

    def forward(self, waveform_BS: Tensor, masked_BT: Tensor, places_P: Tensor, wanted_P: Tensor) -> Tensor:
        """Mean cross entropy of the frames at the places."""
        encoded_BTD = self.hubert(waveform_BS, mask_time_indices=masked_BT).last_hidden_state
        return functional.cross_entropy(self.head(encoded_BTD.flatten(0, 1)[places_P]), wanted_P)


class _ChannelsFirst(nn.Module):
    def __init__(self, frames: nn.Module) -> None:
        super().__init__()
        self.frames = frames

    @override
    def forward(self, waveform_BS: Tensor) -> Tensor:
        return self.frames(waveform_BS).transpose(1, 2)


def hubert(shape: Shape, work: StepWork) -> TorchStep:
    """HubertModel on one batch."""
    _import()
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(work.seed)
    model = HubertModel(HubertConfig(**_sizes(shape)))
    if not shape.wave:
        model.add_module("feature_extractor", _ChannelsFirst(LogMelFrames(work.rate_hz)))
    whole = HubertWithHead(model, shape).to(work.device)
    masked_BT = shape.masked_flags(work.batch, work.samples, work.seed, work.device)
    scored_BT = torch.ones_like(masked_BT) if shape.all_frames else masked_BT
    places_P = scored_BT.flatten().nonzero().squeeze(1)
    wanted_P = shape.labels(work.batch, work.samples, work.seed, work.device).flatten()[places_P]
    waveform_BS = work.waveforms()
    if work.compile:
        whole.compile(mode=work.compile_mode)
    return TorchStep(
        whole,
        lambda: whole(waveform_BS, masked_BT, places_P, wanted_P),
        work,
        macs=shape.macs(work.samples),
        note=HUBERT_NOTE,
    )


def wav2vec2(shape: Shape, work: StepWork) -> TorchStep:
    """Wav2Vec2ForPreTraining on one batch."""
    _import()
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
    from transformers.models.wav2vec2.modeling_wav2vec2 import _sample_negative_indices

    if not shape.wave:
        raise ConfigError(
            "wav2vec 2.0's objective is not that of this model, which hears log-mel frames", "measure model=hubert_base"
        )
    torch.manual_seed(work.seed)
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**_sizes(shape), num_negatives=_NEGATIVES)).to(work.device)
    masked_BT = shape.masked_flags(work.batch, work.samples, work.seed, work.device)
    drawn = _sample_negative_indices(tuple(masked_BT.shape), _NEGATIVES, masked_BT.cpu().numpy())
    negatives_BTN = torch.as_tensor(drawn, dtype=torch.int64, device=work.device)
    waveform_BS = work.waveforms()
    num_masked = int(masked_BT.sum())
    if work.compile:
        model.compile(mode=work.compile_mode)

    def loss() -> Tensor:
        out = model(waveform_BS, mask_time_indices=masked_BT, sampled_negative_indices=negatives_BTN)
        return out.loss / num_masked

    return TorchStep(model, loss, work, macs=shape.macs(work.samples), note=WAV2VEC2_NOTE)


def _sizes(shape: Shape) -> dict[str, Any]:
    """The arguments that both configurations take."""
    return {
        "hidden_size": shape.dim,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn_dim,
        "hidden_dropout": shape.dropout,
        "attention_dropout": shape.dropout,
        "feat_proj_dropout": shape.dropout,
        "activation_dropout": 0.0,
        "final_dropout": 0.0,
        "layerdrop": shape.layer_drop,
        "conv_dim": [shape.conv_dim] * (len(KERNELS) - 1) + [shape.feature_dim],
        "conv_kernel": list(KERNELS),
        "conv_stride": list(STRIDES),
        "num_conv_pos_embeddings": shape.position_kernel,
        "num_conv_pos_embedding_groups": shape.position_groups,
        "do_stable_layer_norm": shape.norm_first,
    }


def _import() -> None:
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "bench", "measuring it") from None
    transformers.logging.set_verbosity_error()
