import numpy as np
import pytest
import torch
from torch import Tensor

from ossicle.encoder.backbone import Backbone
from ossicle.encoder.transformer import Transformer
from ossicle.frontend.logmel import LogMel
from ossicle.mixer.attention import Attention
from ossicle.ops.spectral import log_mel, mfcc
from ossicle.probe.features import EncoderFeatures, Featurizer, LogMelFeatures, MfccFeatures


@pytest.fixture
def wave() -> Tensor:
    return 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))


def tiny_model() -> Backbone:
    torch.manual_seed(0)
    encoder = Transformer(lambda dim: Attention(dim, num_heads=2), dim=16, num_layers=2, ffn_dim=32, layer_drop=0.5)
    return Backbone(LogMel(), encoder, 0.5)


@pytest.mark.parametrize("featurizer", [LogMelFeatures(), MfccFeatures(), EncoderFeatures(tiny_model())])
def test_features_keep_their_clock_and_their_layers(featurizer: Featurizer, wave: Tensor) -> None:
    for num_samples in (16_000, 15_999, 2_000):
        frames = featurizer.extract(wave[:num_samples])
        assert frames.shape[:2] == (len(featurizer.layers), featurizer.clock.num_frames(num_samples))
        assert frames.dtype == torch.float32
    assert featurizer.clock.frames_per_s == 50


def test_spectra_are_given_raw_and_normalised_over_the_utterance(wave: Tensor) -> None:
    mel, cepstra = LogMelFeatures().extract(wave), MfccFeatures().extract(wave)
    torch.testing.assert_close(mel[0], log_mel(wave[None], hop_ms=20.0)[0])
    torch.testing.assert_close(cepstra[0], mfcc(wave[None], hop_ms=20.0)[0])
    assert (mel.shape[-1], cepstra.shape[-1]) == (80, 39)
    np.testing.assert_allclose(mel[1].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(mel[1].std(0, correction=0), 1, atol=1e-3)


def test_an_encoder_is_seen_without_dropout_and_left_in_its_mode(wave: Tensor) -> None:
    model = tiny_model().train()
    featurizer = EncoderFeatures(model, "untrained")
    first, second = featurizer.extract(wave), featurizer.extract(wave)
    torch.testing.assert_close(first, second)
    assert model.training
    assert not first.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert featurizer.layers == ("0", "1", "2")
    expected = model.eval()(wave[None], layers=True).layers
    torch.testing.assert_close(first, torch.cat(expected).detach())


def test_a_silent_utterance_has_finite_features() -> None:
    for featurizer in (LogMelFeatures(), MfccFeatures()):
        assert featurizer.extract(torch.zeros(4_000)).isfinite().all()
