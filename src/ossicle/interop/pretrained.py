"""Encoders from folders that transformers' ``save_pretrained`` wrote, or were fetched from the Hugging Face hub."""

import json
import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ossicle.core.errors import ConfigError, DataError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.transformer import Transformer
from ossicle.frontend.wave import ConvolutionalFrontend, Wave, WaveLayerNorm
from ossicle.interop.huggingface import from_huggingface
from ossicle.interop.renaming import load
from ossicle.mixer.attention import Attention
from ossicle.mixer.base import MixerFactory
from ossicle.mixer.relative_attention import RelativeAttentionStack

Settings = Mapping[str, Any]

SUPPORTED: Final = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
INDEX: Final = ".index.json"
"""What follows the name of weights in a file that says which tensor lies in which of several files."""
_FIXED: Final[Settings] = {"hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": 1e-5}
"""Settings of which this project has one value alone; all are transformers' defaults."""

# the defaults of transformers' configs, for older files that left them out
_CONVOLUTIONS: Final[Settings] = {
    "conv_dim": (512,) * 7, "conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2),
}  # fmt: skip


def huggingface_encoder(directory: Path | str, *, normalise: bool | None = None) -> Backbone:
    """A wav2vec 2.0, HuBERT, WavLM or data2vec model of transformers with its weights, on the host, without dropout.

    Args:
        directory: Holds config.json, the weights (model.safetensors or pytorch_model.bin, or several files and an index
            of them) and, where ``normalise`` is not stated, preprocessor_config.json. Heads beside the encoder are left
            out.
        normalise: Whether each row's samples are brought to mean 0 and variance 1 first. None: what ``do_normalize`` of
            preprocessor_config.json says; where there is no such file, yes for models with layer norms in the
            convolutions, which were trained so (arXiv 2006.11477, section 2).

    Raises:
        ConfigError: The folder has no config or no weights, or the model is of a kind that this project cannot build.
        DataError: A file is damaged, or the weights are not those of the config.
    """
    folder = Path(directory)
    config = _read_json(folder / "config.json")
    audio_file = folder / "preprocessor_config.json"
    audio = _read_json(audio_file) if audio_file.is_file() else {}
    _refuse_others(config, folder)
    if normalise is None:
        normalise = bool(audio.get("do_normalize", bool(audio) or _norms_layers(config)))
    with torch.device("cpu"):
        model = Backbone(
            _frontend(config, rate_hz=int(audio.get("sampling_rate", 16_000)), normalise=normalise),
            _encoder(config),
            input_dropout=0.0,
            norm=config.get("feat_proj_layer_norm", True),
            project=True,
        )
        load(model, from_huggingface(_read_weights(folder)))
    return model.eval()


def _norms_layers(config: Settings) -> bool:
    """Whether every convolution has a layer norm: data2vec's always do, and its config does not say so."""
    return config["model_type"] == "data2vec-audio" or config.get("feat_extract_norm", "group") == "layer"


def _refuse_others(config: Settings, folder: Path) -> None:
    """Refuse a model that this project cannot build.

    Raises:
        ConfigError: It is of another kind, or has other activations or norms.
    """
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        raise ConfigError(f"{folder} holds a model of type {kind}", f"choose one of type {', '.join(SUPPORTED)}")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise ConfigError(f"the model in {folder} has {key}={config[key]}", f"choose a model with {key}={value}")


def _frontend(config: Settings, *, rate_hz: int, normalise: bool) -> ConvolutionalFrontend:
    layers = zip(*(config.get(key, default) for key, default in _CONVOLUTIONS.items()), strict=True)
    kind = WaveLayerNorm if _norms_layers(config) else Wave
    return kind(list(layers), config.get("conv_bias", False), rate_hz=rate_hz, normalise=normalise)


def _mixer(config: Settings) -> MixerFactory:
    heads = config.get("num_attention_heads", 12)
    if config["model_type"] != "wavlm":
        return partial(Attention, num_heads=heads, dropout=0.0)
    return RelativeAttentionStack(heads, 0.0, config.get("num_buckets", 320), config.get("max_bucket_distance", 800))


def _encoder(config: Settings) -> Transformer:
    if config["model_type"] == "data2vec-audio":  # its number of position embeddings is one of convolutions
        kernel, position_layers = config.get("conv_pos_kernel_size", 19), config.get("num_conv_pos_embeddings", 5)
    else:
        kernel, position_layers = config.get("num_conv_pos_embeddings", 128), 1
    return Transformer(
        _mixer(config),
        dim=config.get("hidden_size", 768),
        num_layers=config.get("num_hidden_layers", 12),
        ffn_dim=config.get("intermediate_size", 3072),
        norm_first=config.get("do_stable_layer_norm", False),
        dropout=0.0,
        layer_drop=0.0,
        position_kernel=kernel,
        position_groups=config.get("num_conv_pos_embedding_groups", 16),
        position_layers=position_layers,
    )


def _read_json(path: Path) -> Settings:
    """An object of a JSON file.

    Raises:
        ConfigError: There is no such file.
        DataError: It holds no object.
    """
    if not path.is_file():
        raise ConfigError(f"there is no {path}", "name a folder that transformers' save_pretrained wrote")
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}", "fetch or save the model again") from error
    if not isinstance(read, dict):
        raise DataError(f"{path} holds no settings", "fetch or save the model again")
    return read


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's weights, in float32.

    Raises:
        ConfigError: There are no weights.
        DataError: A file is damaged, or one that an index names is missing.
    """
    for name in WEIGHTS:
        whole, index = folder / name, folder / f"{name}{INDEX}"
        if whole.is_file():
            return read_tensors(whole)
        if index.is_file():
            return _read_shards(index)
    raise ConfigError(f"{folder} has none of {', '.join(WEIGHTS)}, and no index of them", "fetch the weights")


def _read_shards(index: Path) -> dict[str, Tensor]:
    """All tensors that an index names: ``{"weight_map": {tensor: file}}``.

    Raises:
        DataError: The index is damaged, or a file or a tensor of its is missing.
    """
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or any(Path(str(file)).name != file for file in places.values()):
        raise DataError(f"{index} names no files beside it", "fetch or save the model again")
    missing = sorted(file for file in set(places.values()) if not (index.parent / file).is_file())
    if missing:
        raise DataError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names", "fetch all the weights")
    state: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        state |= read_tensors(index.parent / file)
    if not places.keys() <= state.keys():
        raise DataError(f"the files of {index} lack {min(places.keys() - state.keys())}", "fetch the model again")
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file, in float32.

    Raises:
        DataError: It is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} holds no readable weights: {error}", "fetch or save the model again") from error
    return {key: value.float() for key, value in state.items()}
