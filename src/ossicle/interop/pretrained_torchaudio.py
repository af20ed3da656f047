"""Encoders from state dicts of torchaudio's wav2vec 2.0 and HuBERT models, as its bundles' files hold them."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ossicle.core.errors import ConfigError, DataError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.transformer import Transformer
from ossicle.frontend.wave import Wave, WaveLayerNorm
from ossicle.interop.pretrained import read_tensors
from ossicle.interop.renaming import load
from ossicle.interop.torchaudio import from_torchaudio
from ossicle.mixer.attention import Attention

HEADS: Final[Mapping[int, int]] = {768: 12, 1024: 16, 1280: 16, 1920: 16}
"""Heads of the published models, by their width: weights do not tell."""

_POSITION: Final = "encoder.position.conv.parametrizations.weight.original1"
_FIRST: Final = "encoder.blocks.0.feed_forward.expand.weight"
_ASKED: Final = ("frontend.layers.0.conv.weight", "project.weight", _FIRST, _POSITION)
"""What sizes are read from."""


def torchaudio_encoder(
    path: Path | str,
    *,
    num_heads: int | None = None,
    norm_first: bool | None = None,
    normalise: bool | None = None,
    strides: Sequence[int] = (5, 2, 2, 2, 2, 2, 2),
    rate_hz: int = 16_000,
) -> Backbone:
    """A wav2vec 2.0 or HuBERT model of torchaudio with its weights, on the host, without dropout.

    Sizes are those of the weights. What weights do not tell is what all published models have, unless it is stated.

    Args:
        path: A file that ``torch.save(model.state_dict(), path)`` or safetensors wrote, of
            torchaudio.models.Wav2Vec2Model or HuBERTPretrainModel. Heads beside the encoder are left out.
        num_heads: Heads of the attention; None for :data:`HEADS` of the width.
        norm_first: Whether the blocks' norms stand before their branches; None: where convolutions have layer norms.
        normalise: Whether each row's samples are brought to mean 0 and variance 1 first; None: where the convolutions
            have layer norms, as torchaudio's bundles ask for (arXiv 2006.11477, section 2).
        strides: Strides of the convolutions.
        rate_hz: Samples a second.

    Raises:
        ConfigError: There is no such file, the heads of a model of this width are not known, or strides are not those
            of as many convolutions as there are.
        DataError: The file is damaged, or its weights are another model's.
    """
    if not Path(path).is_file():
        raise ConfigError(f"there is no {path}", "name a file that torch.save(model.state_dict(), ...) wrote")
    own = from_torchaudio(read_tensors(Path(path)))
    missing = [key for key in _ASKED if key not in own]
    if missing:
        raise DataError(f"the weights of {path} lack {missing[0]}", "save the state dict of a whole model")
    layered = "frontend.layers.1.norm.weight" in own
    with torch.device("cpu"):
        model = Backbone(
            _frontend(own, strides, rate_hz, layered=layered, normalise=layered if normalise is None else normalise),
            _encoder(own, num_heads, norm_first=layered if norm_first is None else norm_first),
            input_dropout=0.0,
            project=True,
        )
        load(model, own)
    return model.eval()


def _count(own: Mapping[str, Tensor], first: str, last: str) -> int:
    """Layers of a kind: they are numbered from 0."""
    return sum(key.startswith(first) and key.endswith(last) for key in own)


def _frontend(
    own: Mapping[str, Tensor], strides: Sequence[int], rate_hz: int, *, layered: bool, normalise: bool
) -> Wave | WaveLayerNorm:
    shapes = [
        own[f"frontend.layers.{number}.conv.weight"].shape
        for number in range(_count(own, "frontend.layers.", ".conv.weight"))
    ]
    if len(shapes) != len(strides):
        raise ConfigError(
            f"strides={list(strides)} are {len(strides)}, and the model has {len(shapes)} convolutions",
            "state the stride of each",
        )
    layers = [(shape[0], shape[-1], stride) for shape, stride in zip(shapes, strides, strict=True)]
    kind = WaveLayerNorm if layered else Wave
    return kind(layers, "frontend.layers.0.conv.bias" in own, rate_hz=rate_hz, normalise=normalise)


def _encoder(own: Mapping[str, Tensor], num_heads: int | None, *, norm_first: bool) -> Transformer:
    dim = own["project.weight"].shape[0]
    heads = HEADS.get(dim) if num_heads is None else num_heads
    if heads is None:
        raise ConfigError(f"no published model has a width of {dim}", "state num_heads, the heads of its attention")
    _, group, kernel = own[_POSITION].shape
    return Transformer(
        partial(Attention, num_heads=heads, dropout=0.0),
        dim=dim,
        num_layers=_count(own, "encoder.blocks.", ".feed_forward.expand.weight"),
        ffn_dim=own[_FIRST].shape[0],
        norm_first=norm_first,
        dropout=0.0,
        layer_drop=0.0,
        position_kernel=kernel,
        position_groups=dim // group,
    )
