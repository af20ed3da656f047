import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from ossicle.core.errors import ConfigError, DataError
from ossicle.encoder.backbone import Backbone
from ossicle.interop.huggingface import from_huggingface, to_huggingface
from ossicle.interop.pretrained import huggingface_encoder

KINDS = {
    HubertModel: HubertConfig, HubertForCTC: HubertConfig, Wav2Vec2Model: Wav2Vec2Config, WavLMModel: WavLMConfig,
    Data2VecAudioModel: Data2VecAudioConfig,
}  # fmt: skip
LARGE: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
MODELS = [
    (HubertModel, {}), (HubertModel, LARGE), (HubertModel, {"feat_proj_layer_norm": False}), (HubertForCTC, {}),
    (Wav2Vec2Model, LARGE), (WavLMModel, {}), (WavLMModel, LARGE), (Data2VecAudioModel, {}),
]  # fmt: skip


def saved(
    folder: Path, kind: type[nn.Module] = HubertModel, *, audio: bool | None = None, **settings: Any
) -> nn.Module:
    """A small model with random weights, norms and biases too, and its folder."""
    torch.manual_seed(0)
    positions = {} if kind is Data2VecAudioModel else {"num_conv_pos_embeddings": 16}
    buckets = {"num_buckets": 16, "max_bucket_distance": 40} if kind is WavLMModel else {}
    theirs = kind(
        KINDS[kind](
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
            conv_dim=(16,) * 7, num_conv_pos_embedding_groups=4, **positions, **buckets, **settings,
        )
    )  # fmt: skip
    for name, parameter in theirs.named_parameters():
        scale = 1.0 if name.endswith("original0") else 0.1
        nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=scale)
    theirs.save_pretrained(folder)
    if audio is not None:
        Wav2Vec2FeatureExtractor(do_normalize=audio).save_pretrained(folder)
    return theirs.eval()


@pytest.mark.parametrize(("kind", "settings"), MODELS)
def test_a_folder_gives_the_model_that_transformers_saved(
    kind: type[nn.Module], settings: dict[str, Any], tmp_path: Path
) -> None:
    theirs = getattr(saved(tmp_path, kind, audio=False, **settings), "hubert", None) or kind.from_pretrained(tmp_path)
    ours = huggingface_encoder(tmp_path)
    assert not any(module.training for module in ours.modules())
    waveform = torch.randn(2, 8000)
    with torch.no_grad():
        wanted, made = theirs.eval()(waveform, output_hidden_states=True), ours(waveform, layers=True)
    torch.testing.assert_close(made.last_BTD, wanted.last_hidden_state, atol=1e-5, rtol=1e-4)
    assert len(made.layers) == len(wanted.hidden_states) == 4
    for mine, other in zip(made.layers[:-1], wanted.hidden_states[:-1], strict=True):  # theirs norms the last one
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_wavlms_weights_come_back_from_the_round_trip_unchanged(tmp_path: Path) -> None:
    state = saved(tmp_path, WavLMModel).state_dict()
    back = to_huggingface(from_huggingface(state), state["masked_spec_embed"])
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


def hears_level(model: Backbone) -> bool:
    """Whether a model that hears audio of another level and offset makes another thing of it."""
    waveform = torch.randn(1, 4000)
    with torch.no_grad():
        return not torch.allclose(model(waveform).last_BTD, model(3 * waveform + 0.5).last_BTD, atol=1e-3)


@pytest.mark.parametrize(
    ("audio", "stated", "normalised"),
    [
        (True, None, True),
        (False, None, False),
        (False, True, True),
        (True, False, False),
        (None, None, True),
        (None, False, False),
    ],
)
def test_audio_is_normalised_where_the_folder_or_the_user_says_so(
    audio: bool | None, stated: bool | None, normalised: bool, tmp_path: Path
) -> None:
    saved(tmp_path, audio=audio, **LARGE)
    assert hears_level(huggingface_encoder(tmp_path, normalise=stated)) is not normalised


def test_old_folders_with_pickled_weights_are_read_too(tmp_path: Path) -> None:
    theirs = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    waveform = torch.randn(1, 4000)
    with torch.no_grad():
        torch.testing.assert_close(huggingface_encoder(tmp_path)(waveform).last_BTD, theirs(waveform).last_hidden_state)


@pytest.mark.parametrize("kind", [HubertModel, WavLMModel])
def test_weights_in_several_files_are_read_as_transformers_reads_them(kind: type[nn.Module], tmp_path: Path) -> None:
    theirs = saved(tmp_path, kind, audio=False)
    whole = huggingface_encoder(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    again = kind.from_pretrained(tmp_path).eval()
    state = huggingface_encoder(tmp_path).state_dict()
    assert state.keys() == whole.keys()
    assert all(torch.equal(state[key], value) for key, value in whole.items())
    waveform = torch.randn(1, 4000)
    with torch.no_grad():
        torch.testing.assert_close(
            huggingface_encoder(tmp_path)(waveform).last_BTD, again(waveform).last_hidden_state, atol=1e-5, rtol=1e-4
        )


def test_pickled_weights_in_several_files_are_read_too(tmp_path: Path) -> None:
    theirs = saved(tmp_path, audio=False)
    (tmp_path / "model.safetensors").unlink()
    state = theirs.state_dict()
    files = {key: f"pytorch_model-{number % 2}.bin" for number, key in enumerate(state)}
    for file in set(files.values()):
        torch.save({key: value for key, value in state.items() if files[key] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    waveform = torch.randn(1, 4000)
    with torch.no_grad():
        torch.testing.assert_close(huggingface_encoder(tmp_path)(waveform).last_BTD, theirs(waveform).last_hidden_state)


def test_an_index_that_is_not_whole_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path, audio=False).save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    index = tmp_path / "model.safetensors.index.json"
    read = json.loads(index.read_text())
    shard = tmp_path / min(read["weight_map"].values())
    kept = shard.read_bytes()
    shard.unlink()
    with pytest.raises(DataError, match=rf"lacks {shard.name}, which model\.safetensors\.index\.json names"):
        huggingface_encoder(tmp_path)
    shard.write_bytes(kept)
    key = "encoder.layers.9.layer_norm.bias"
    for weight_map, problem in (
        ({**read["weight_map"], key: shard.name}, f"lack {key}"),
        ({key: f"../{shard.name}"}, "names no files beside it"),
        (None, "names no files beside it"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(DataError, match=problem):
            huggingface_encoder(tmp_path)


def test_what_cannot_be_built_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*config\.json"):
        huggingface_encoder(tmp_path)
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, problem in (
        ({"model_type": "wav2vec2-conformer"}, "of type wav2vec2-conformer"),
        ({"hidden_act": "relu"}, "has hidden_act=relu"),
        ({"layer_norm_eps": 1e-3}, "has layer_norm_eps=0.001"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ConfigError, match=problem):
            huggingface_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(DataError, match=r"lack keys: encoder\.blocks\.3"):
        huggingface_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="no readable weights"):
        huggingface_encoder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"none of model\.safetensors"):
        huggingface_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        huggingface_encoder(tmp_path)
