import functools

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torchaudio.models import Wav2Vec2Model, hubert_pretrain_model, wav2vec2_model

from ossicle.core.errors import DataError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.transformer import Transformer
from ossicle.frontend.wave import Wave, WaveLayerNorm
from ossicle.interop.renaming import load
from ossicle.interop.torchaudio import from_torchaudio, to_torchaudio
from ossicle.mixer.attention import Attention

CONVOLUTIONS = [(16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2]
SIZES = pytest.mark.parametrize("large", [False, True], ids=["base", "large"])


def settings(large: bool) -> dict[str, object]:
    return {
        "extractor_mode": "layer_norm" if large else "group_norm",
        "extractor_conv_layer_config": CONVOLUTIONS,
        "extractor_conv_bias": large,
        "encoder_embed_dim": 32,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 128,
        "encoder_pos_conv_groups": 16,
        "encoder_num_layers": 5 if large else 3,
        "encoder_num_heads": 4,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 64,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": large,
        "encoder_layer_drop": 0.0,
    }


@functools.cache
def pair(large: bool) -> tuple[Wav2Vec2Model, Backbone]:
    torch.manual_seed(large)
    theirs = wav2vec2_model(**settings(large), aux_num_out=7).eval()
    for name, parameter in theirs.named_parameters():
        scale = 1.0 if name.endswith("original0") else 0.1
        nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=scale)
    frontend = (WaveLayerNorm if large else Wave)(CONVOLUTIONS, large)
    mixer = functools.partial(Attention, num_heads=4)
    encoder = Transformer(mixer, dim=32, num_layers=5 if large else 3, ffn_dim=64, norm_first=large)
    ours = Backbone(frontend, encoder).eval()
    load(ours, from_torchaudio(theirs.state_dict()))
    return theirs, ours


@SIZES
@hypothesis.given(samples=st.integers(400, 12_000))
@hypothesis.settings(max_examples=8, deadline=None)
def test_every_layer_of_converted_weights_equals_torchaudio(large: bool, samples: int) -> None:
    theirs, ours = pair(large)
    waveform = torch.randn(2, samples, generator=torch.Generator().manual_seed(samples))
    with torch.no_grad():
        expected, _ = theirs.extract_features(waveform)
        features, _ = theirs.feature_extractor(waveform, None)
        last = theirs.encoder(features)
        out = ours(waveform, layers=True)
    for layer, reference in zip((*out.layers[1:], out.last_BTD), (*expected, last), strict=True):
        torch.testing.assert_close(layer, reference, atol=1e-5, rtol=1e-5)


@SIZES
@hypothesis.given(lengths=st.lists(st.integers(400, 9_000), min_size=2, max_size=4))
@hypothesis.settings(max_examples=8, deadline=None)
def test_a_padded_batch_equals_torchaudio_one_at_a_time(large: bool, lengths: list[int]) -> None:
    theirs, ours = pair(large)
    waveform = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveform[row, :length] = torch.randn(length, generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        out = ours(waveform, torch.tensor(lengths), layers=True)
        for row, length in enumerate(lengths):
            expected, _ = theirs.extract_features(waveform[row : row + 1, :length])
            for layer, reference in zip(out.layers[1:], expected, strict=True):
                torch.testing.assert_close(layer[row, : reference.shape[1]], reference[0], atol=1e-5, rtol=1e-5)


@SIZES
def test_weights_come_back_from_the_round_trip_unchanged(large: bool) -> None:
    theirs, ours = pair(large)
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("aux.")}
    back = to_torchaudio(ours.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_a_pretraining_model_gives_its_encoder() -> None:
    model = hubert_pretrain_model(
        **settings(large=False), mask_prob=0.8, mask_selection="static", mask_other=0.0, mask_length=10,
        no_mask_overlap=False, mask_min_space=1, mask_channel_prob=0.0, mask_channel_selection="static",
        mask_channel_other=0.0, mask_channel_length=10, no_mask_channel_overlap=False, mask_channel_min_space=1,
        skip_masked=False, skip_nomask=False, num_classes=9, final_dim=8, feature_grad_mult=0.1,
    )  # fmt: skip
    _, ours = pair(large=False)
    assert from_torchaudio(model.state_dict()).keys() == ours.state_dict().keys()


def test_keys_that_no_part_has_are_named() -> None:
    with pytest.raises(DataError, match=r"encoder\.transformer\.layers\.0\.attention\.rel_attn_embed\.weight"):
        from_torchaudio({"encoder.transformer.layers.0.attention.rel_attn_embed.weight": torch.zeros(1)})
