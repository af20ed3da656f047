"""SpeechBrain: the parts of its recipe of wav2vec 2.0 pretraining, for it has none of HuBERT's."""

import logging

import torch
from torch import Tensor, nn

from ossicle.core.errors import ConfigError, MissingExtraError
from ossicle.launch.bench.peers.shape import KERNELS, STRIDES, Shape
from ossicle.launch.bench.peers.torch_step import TorchStep
from ossicle.launch.bench.steps import StepWork

NOTE = (
    "wav2vec 2.0 of its LibriSpeech recipe (it has no HuBERT pretraining): its convolutions, each with layer norm, at"
    " HuBERT's kernels and strides, sinusoids in place of a position convolution, pre-norm blocks, its quantiser and"
    " contrastive loss over 100 negatives; masks drawn once; another objective and a lighter model than the others"
)
UNKNOWN = "another model than HuBERT, whose products were not counted"
_NEGATIVES = 100


class Wav2Vec2(nn.Module):
    """The recipe's modules in its order.

    Args:
        shape: The sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
        from speechbrain.lobes.models.wav2vec import EncoderWrapper, W2VLatentExtractor, W2VTargetQuantiser
        from speechbrain.nnet.losses import ContrastiveLoss

        self.extractor = W2VLatentExtractor([shape.conv_dim] * len(KERNELS), list(KERNELS), list(STRIDES))
        encoder = TransformerEncoder(
            num_layers=shape.layers,
            nhead=shape.heads,
            d_ffn=shape.ffn_dim,
            d_model=shape.dim,
            dropout=shape.dropout,
            layerdrop_prob=shape.layer_drop,
            normalize_before=True,
            activation=nn.GELU,
        )
        self.encoder = EncoderWrapper(shape.conv_dim, shape.dim, encoder, dropout_encoder_input=shape.dropout)
        self.quantiser = W2VTargetQuantiser(in_dim=shape.conv_dim, out_dim=shape.final_dim)
        self.project = nn.Linear(shape.dim, shape.final_dim)
        self.loss = ContrastiveLoss(0.1)

    def forward(self, waveform_BS: Tensor, masked_BT: Tensor) -> Tensor:
        """The mean loss of the masked frames."""
        from speechbrain.lobes.models.wav2vec import sample_negatives

        rows = len(waveform_BS)
        latents_BTC = self.extractor(waveform_BS, normalize_signal=False)
        wholes_B = torch.ones(rows, device=waveform_BS.device)
        found = self.encoder(latents_BTC, mask=masked_BT, wav_lens=wholes_B)
        projected_PF = self.project(found["embeddings"][masked_BT])
        targets_BMF, meta = self.quantiser(latents_BTC[masked_BT].view(rows, -1, latents_BTC.shape[-1]))
        negatives = sample_negatives(targets_BMF, _NEGATIVES)
        loss, _ = self.loss(projected_PF.view(rows, -1, projected_PF.shape[-1]), targets_BMF, negatives)
        return loss / found["num_masked"] + 0.1 * meta["diversity_loss"]


def wav2vec2(shape: Shape, work: StepWork) -> TorchStep:
    """The recipe's modules on one batch."""
    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    try:
        import speechbrain.lobes.models.wav2vec  # noqa: F401
    except ImportError:
        raise MissingExtraError("speechbrain", "bench", "measuring it") from None
    if not shape.wave:
        raise ConfigError("its recipe hears the waveform, not log-mel frames", "measure model=hubert_base")
    torch.manual_seed(work.seed)
    model = Wav2Vec2(shape).to(work.device)
    masked_BT = shape.masked_flags(work.batch, work.samples, work.seed, work.device)
    waveform_BS = work.waveforms()
    if work.compile:
        model.compile(mode=work.compile_mode)
    return TorchStep(model, lambda: model(waveform_BS, masked_BT), work, macs=UNKNOWN, note=NOTE)
