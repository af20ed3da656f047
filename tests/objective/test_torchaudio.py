"""HuBERT's loss and all its gradients beside torchaudio's pretraining model, with its weights."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.models import HuBERTPretrainModel, hubert_pretrain_model
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.transformer import Transformer
from ossicle.frontend.wave import Wave
from ossicle.interop.renaming import load
from ossicle.interop.torchaudio import from_torchaudio
from ossicle.layer.heads import CosineHead
from ossicle.layer.mask import EmbeddingMask
from ossicle.mixer.attention import Attention
from ossicle.objective.masked_prediction import MaskedPrediction
from ossicle.ops.masking import masked_flags
from ossicle.target.kmeans import KMeansLabels

CONVOLUTIONS = [(12, 10, 5), (12, 8, 8), (12, 4, 4)]
CLASSES, FINAL, FRAMES, SCALE = 7, 10, 21, 0.3
MASKED = torch.tensor([[0, 1, 2, 9, 13, 14], [3, 7, 8, 9, 19, 20]])


class GivenMask(nn.Module):
    """Their mask embedding, at frames that are ours to choose."""

    def __init__(self, embedding: nn.Parameter) -> None:
        super().__init__()
        self.mask_embedding = embedding

    @override
    def forward(self, x_BTD: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        assert padding is None
        flags = masked_flags(MASKED, FRAMES)
        return torch.where(flags[..., None], self.mask_embedding, x_BTD), flags


def their_model() -> HuBERTPretrainModel:
    torch.manual_seed(0)
    theirs = hubert_pretrain_model(
        "group_norm", CONVOLUTIONS, encoder_embed_dim=24, encoder_projection_dropout=0.0, encoder_pos_conv_kernel=8,
        encoder_pos_conv_groups=2, encoder_num_layers=2, encoder_num_heads=2, encoder_attention_dropout=0.0,
        encoder_ff_interm_features=32, encoder_ff_interm_dropout=0.0, encoder_dropout=0.0,
        encoder_layer_norm_first=False, encoder_layer_drop=0.0, extractor_conv_bias=False, mask_prob=0.8,
        mask_selection="static", mask_other=0.0, mask_length=10, no_mask_overlap=False, mask_min_space=1,
        mask_channel_prob=0.0, mask_channel_selection="static", mask_channel_other=0.0, mask_channel_length=10,
        no_mask_channel_overlap=False, mask_channel_min_space=1, skip_masked=False, skip_nomask=False,
        num_classes=CLASSES, final_dim=FINAL, feature_grad_mult=SCALE,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.wav2vec2.encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    theirs.mask_generator = GivenMask(theirs.mask_generator.mask_embedding)
    return theirs


def converted(theirs: HuBERTPretrainModel, **weights: float) -> tuple[Backbone, MaskedPrediction]:
    mixer = partial(Attention, num_heads=2, dropout=0.0)
    encoder = Transformer(
        mixer, dim=24, num_layers=2, ffn_dim=32, position_kernel=8, position_groups=2, norm_first=False, dropout=0.0,
        layer_drop=0.0,
    )  # fmt: skip
    model = Backbone(Wave(CONVOLUTIONS, gradient_scale=SCALE), encoder, 0.0)
    load(model, from_torchaudio(theirs.state_dict()))
    target = KMeansLabels(CLASSES, clock=model.clock, feature_dim=12)
    objective = MaskedPrediction(
        target, 24, 12, head=partial(CosineHead, final_dim=FINAL), mask=EmbeddingMask, **weights
    )
    own = dict(objective.named_parameters())
    with torch.no_grad():
        for name, parameter in beside(theirs).items():
            own[name].copy_(parameter)
    return model, objective


def beside(theirs: HuBERTPretrainModel) -> dict[str, nn.Parameter]:
    """What theirs has for pretraining alone, under the objective's names."""
    logits = theirs.logit_generator
    return {
        "mask.vector_D": theirs.mask_generator.mask_embedding,
        "head.classes_VF": logits.label_embeddings,
        "head.project.weight": logits.final_proj.weight,
        "head.project.bias": logits.final_proj.bias,
    }


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.4])
@pytest.mark.parametrize("penalty_weight", [0.0, 10.0])
def test_loss_and_gradients_of_every_weight_equal_torchaudios(unmasked_weight: float, penalty_weight: float) -> None:
    theirs = their_model()
    model, objective = converted(theirs, unmasked_weight=unmasked_weight, penalty_weight=penalty_weight)
    source = torch.Generator().manual_seed(3)
    waveform = torch.randn(2, model.clock.num_samples(FRAMES), generator=source)
    labels = torch.randint(0, CLASSES, (2, FRAMES), generator=source)
    batch = Batch(waveform, 0, torch.arange(2), torch.zeros(2, dtype=torch.int64), labels)
    ours = objective.predict(model, batch, MASKED, seed=0)

    masked, seen, penalty = theirs(waveform, labels)
    sums = [
        functional.cross_entropy(p, p.new_zeros(len(p), dtype=torch.int64), reduction="sum") for p in (masked, seen)
    ]
    assert len(masked) == MASKED.numel()
    count = labels.numel() if unmasked_weight else len(masked)
    expected = sums[0] + unmasked_weight * sums[1] + penalty_weight * count * penalty
    assert float(ours.count) == count
    torch.testing.assert_close(ours.loss_sum, expected, rtol=1e-5, atol=1e-4)
    right = [float((p[:, 0] >= p.max(-1).values).float().mean()) for p in (masked, seen)]
    assert ours.logs["objective/accuracy_masked"].read("x")["x"] == pytest.approx(right[0])
    if unmasked_weight:
        assert ours.logs["objective/accuracy_unmasked"].read("x")["x"] == pytest.approx(right[1])

    ours.loss_sum.backward()
    expected.backward()
    grads = from_torchaudio({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.grad, grads.pop(name), rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert not grads
    own = dict(objective.named_parameters())
    for name, parameter in beside(theirs).items():
        torch.testing.assert_close(own.pop(name).grad, parameter.grad, rtol=1e-4, atol=1e-4)
    assert not own
