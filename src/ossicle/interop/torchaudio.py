"""Weights of torchaudio's wav2vec 2.0 and HuBERT models, to and from a Backbone.

torchaudio's bundles normalise waveforms where the convolutions have layer norms. Weights do not tell, so the frontend
is built with ``normalise`` there.
"""

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from ossicle.interop.renaming import Renaming

_LAYER: Final = "encoder.transformer.layers.{n}"
_BLOCK: Final = "encoder.blocks.{n}"

RENAMING: Final = Renaming(
    name="torchaudio",
    pairs=(
        ("feature_extractor.conv_layers.{n}.conv.{p}", "frontend.layers.{n}.conv.{p}"),
        ("feature_extractor.conv_layers.{n}.layer_norm.{p}", "frontend.layers.{n}.norm.{p}"),
        ("encoder.feature_projection.layer_norm.{p}", "norm.{p}"),
        ("encoder.feature_projection.projection.{p}", "project.{p}"),
        ("encoder.transformer.pos_conv_embed.conv.bias", "encoder.position.conv.bias"),
        (
            "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.{p}",
            "encoder.position.conv.parametrizations.weight.{p}",
        ),
        # Files written before torch had parametrisations, the published ones too; never written, since an earlier pair
        # exports the same key.
        (
            "encoder.transformer.pos_conv_embed.conv.weight_g",
            "encoder.position.conv.parametrizations.weight.original0",
        ),
        (
            "encoder.transformer.pos_conv_embed.conv.weight_v",
            "encoder.position.conv.parametrizations.weight.original1",
        ),
        ("encoder.transformer.layer_norm.{p}", "encoder.norm.{p}"),
        (f"{_LAYER}.attention.q_proj.{{p}}", f"{_BLOCK}.mixer.query.{{p}}"),
        (f"{_LAYER}.attention.k_proj.{{p}}", f"{_BLOCK}.mixer.key.{{p}}"),
        (f"{_LAYER}.attention.v_proj.{{p}}", f"{_BLOCK}.mixer.value.{{p}}"),
        (f"{_LAYER}.attention.out_proj.{{p}}", f"{_BLOCK}.mixer.out.{{p}}"),
        (f"{_LAYER}.layer_norm.{{p}}", f"{_BLOCK}.mixer_norm.{{p}}"),
        (f"{_LAYER}.feed_forward.intermediate_dense.{{p}}", f"{_BLOCK}.feed_forward.expand.{{p}}"),
        (f"{_LAYER}.feed_forward.output_dense.{{p}}", f"{_BLOCK}.feed_forward.contract.{{p}}"),
        (f"{_LAYER}.final_layer_norm.{{p}}", f"{_BLOCK}.feed_forward_norm.{{p}}"),
    ),
    prefixes=("wav2vec2.", "model."),
    left_out=("aux.", "mask_generator.", "logit_generator."),
)


def from_torchaudio(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Backbone's state dict from that of torchaudio.models.Wav2Vec2Model or HuBERTPretrainModel.

    Args:
        state: The foreign state dict.

    Raises:
        DataError: If a key is neither the encoder's nor a known head's.
    """
    return RENAMING.imported(state)


def to_torchaudio(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of torchaudio.models.Wav2Vec2Model from a Backbone's.

    Args:
        state: The Backbone's state dict.

    Raises:
        DataError: If the Backbone holds what that model does not.
    """
    return RENAMING.exported(state)
