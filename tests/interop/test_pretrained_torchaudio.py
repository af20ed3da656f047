from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchaudio.models import hubert_pretrain_model, wav2vec2_model

from ossicle.core.errors import ConfigError, DataError
from ossicle.interop.pretrained_torchaudio import torchaudio_encoder
from tests.interop.test_torchaudio import settings

SIZES = pytest.mark.parametrize("large", [False, True], ids=["base", "large"])


def random(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        scale = 1.0 if name.endswith("original0") else 0.1
        nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=scale)
    return model.eval()


def made(large: bool, **changes: Any) -> nn.Module:
    return random(wav2vec2_model(**(settings(large) | changes), aux_num_out=7))


def equal(path: Path, theirs: nn.Module, **stated: Any) -> None:
    """What a file gives is what torchaudio's model makes of the same audio, in every layer."""
    ours = torchaudio_encoder(path, **stated)
    assert not any(module.training for module in ours.modules())
    waveform = torch.randn(2, 8000)
    with torch.no_grad():
        wanted, _ = theirs.extract_features(waveform)  # ty: ignore
        layers = ours(waveform, layers=True).layers[1:]
    assert len(layers) == len(wanted)
    for mine, other in zip(layers, wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


@SIZES
def test_a_saved_state_dict_gives_torchaudios_model(large: bool, tmp_path: Path) -> None:
    theirs = made(large)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    equal(tmp_path / "model.pth", theirs, num_heads=4, normalise=False)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    equal(tmp_path / "model.safetensors", theirs, num_heads=4, normalise=False)


def test_weight_norms_of_older_files_and_of_the_published_ones_are_read(tmp_path: Path) -> None:
    theirs = made(large=False)
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = theirs.state_dict()
    for new, old in names.items():
        key = f"encoder.transformer.pos_conv_embed.conv.{new}"
        state[key.replace(new, old)] = state.pop(key)
    torch.save(state, tmp_path / "model.pth")
    equal(tmp_path / "model.pth", theirs, num_heads=4)


def test_a_hubert_with_what_it_pretrains_with_is_read(tmp_path: Path) -> None:
    theirs = random(
        hubert_pretrain_model(
            **settings(large=False), mask_prob=0.8, mask_selection="static", mask_other=0.0, mask_length=10,
            no_mask_overlap=False, mask_min_space=1, mask_channel_prob=0.0, mask_channel_selection="static",
            mask_channel_other=0.0, mask_channel_length=10, no_mask_channel_overlap=False, mask_channel_min_space=1,
            skip_masked=False, skip_nomask=False, num_classes=7, final_dim=8, feature_grad_mult=0.1,
        )
    )  # fmt: skip
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    equal(tmp_path / "model.pth", theirs.wav2vec2, num_heads=4)  # ty: ignore


@SIZES
def test_published_widths_need_no_numbers_and_audio_is_normalised_with_layer_norms(large: bool, tmp_path: Path) -> None:
    theirs = made(
        large, encoder_embed_dim=1024 if large else 768, encoder_num_heads=16 if large else 12, encoder_num_layers=1
    )
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    if not large:
        equal(tmp_path / "model.pth", theirs)
        return
    ours, waveform = torchaudio_encoder(tmp_path / "model.pth"), torch.randn(1, 4000)
    with torch.no_grad():
        heard = torch.nn.functional.layer_norm(3 * waveform + 0.5, waveform.shape)
        wanted = theirs.extract_features(heard)[0][-1]  # ty: ignore
        mine = ours(3 * waveform + 0.5, layers=True).layers[-1]
    torch.testing.assert_close(mine, wanted, atol=1e-3, rtol=1e-3)


def test_what_cannot_be_built_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with pytest.raises(ConfigError, match=r"there is no .*model\.pth"):
        torchaudio_encoder(path)
    model = made(large=False)
    torch.save(nn.Linear(2, 2), path)  # a module itself, which only its own code can read
    with pytest.raises(DataError, match="no readable weights"):
        torchaudio_encoder(path)
    torch.save(model.state_dict(), path)
    with pytest.raises(ConfigError, match="no published model has a width of 32"):
        torchaudio_encoder(path)
    with pytest.raises(ConfigError, match="has 7 convolutions"):
        torchaudio_encoder(path, num_heads=4, strides=(5, 2))
    torch.save({key: value for key, value in model.state_dict().items() if "projection" not in key}, path)
    with pytest.raises(DataError, match=r"lack project\.weight"):
        torchaudio_encoder(path, num_heads=4)
