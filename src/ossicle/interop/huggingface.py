"""Weights of transformers' wav2vec 2.0, HuBERT, WavLM and data2vec models, to and from a Backbone.

Base models are ``frontend=wave`` with norms after the branches; large ones are ``frontend=wave_layer_norm`` with
``norm_first``; data2vec's are ``frontend=wave_layer_norm`` with norms after the branches and ``position_layers=5``;
WavLM's are as these, with ``mixer=relative_attention``.
transformers normalises audio in its feature extractor where a checkpoint's ``do_normalize`` asks for it, as those with
layer norms in the convolutions do. Weights do not tell, so the frontend is built with ``normalise`` there.
"""

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from ossicle.interop.renaming import Renaming

_THEIR_SCALE: Final = "attention.gru_rel_pos_const"  # WavLM's, shape (1, H, 1, 1)
_SCALE: Final = "mixer.gate_scale"  # shape (H,)
_BLOCK: Final = (
    ("attention.q_proj.{p}", "mixer.query.{p}"),
    ("attention.k_proj.{p}", "mixer.key.{p}"),
    ("attention.v_proj.{p}", "mixer.value.{p}"),
    ("attention.out_proj.{p}", "mixer.out.{p}"),
    ("attention.gru_rel_pos_linear.{p}", "mixer.gate.{p}"),
    (_THEIR_SCALE, _SCALE),
    ("attention.rel_attn_embed.{p}", "mixer.distance_bias.{p}"),
    ("layer_norm.{p}", "mixer_norm.{p}"),
    ("feed_forward.intermediate_dense.{p}", "feed_forward.expand.{p}"),
    ("feed_forward.output_dense.{p}", "feed_forward.contract.{p}"),
    ("final_layer_norm.{p}", "feed_forward_norm.{p}"),
)
_POSITION: Final = "encoder.position.conv.parametrizations.weight"

RENAMING: Final = Renaming(
    name="transformers",
    pairs=(
        ("feature_extractor.conv_layers.{n}.conv.{p}", "frontend.layers.{n}.conv.{p}"),
        ("feature_extractor.conv_layers.{n}.layer_norm.{p}", "frontend.layers.{n}.norm.{p}"),
        ("feature_projection.layer_norm.{p}", "norm.{p}"),
        ("feature_projection.projection.{p}", "project.{p}"),
        ("encoder.pos_conv_embed.conv.bias", "encoder.position.conv.bias"),
        ("encoder.pos_conv_embed.conv.parametrizations.weight.{p}", f"{_POSITION}.{{p}}"),
        # Files written before torch had parametrisations; never written, since an earlier pair exports the same key.
        ("encoder.pos_conv_embed.conv.weight_g", f"{_POSITION}.original0"),
        ("encoder.pos_conv_embed.conv.weight_v", f"{_POSITION}.original1"),
        ("encoder.pos_conv_embed.layers.{n}.conv.{p}", "encoder.position.layers.{n}.conv.{p}"),
        ("encoder.layer_norm.{p}", "encoder.norm.{p}"),
        *((f"encoder.layers.{{n}}.{foreign}", f"encoder.blocks.{{n}}.{own}") for foreign, own in _BLOCK),
    ),
    prefixes=("wav2vec2.", "hubert.", "wavlm.", "data2vec_audio."),
    left_out=("masked_spec_embed", "quantizer.", "project_hid.", "project_q.", "lm_head.", "projector.", "classifier."),
)


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Backbone's state dict from that of a wav2vec 2.0, HuBERT, WavLM or data2vec model, with a head or without.

    Args:
        state: The foreign state dict.

    Raises:
        DataError: If a key is neither the encoder's nor a known head's.
    """
    own = RENAMING.imported(state)
    return {key: value.flatten() if key.endswith(_SCALE) else value for key, value in own.items()}


def to_huggingface(state: Mapping[str, Tensor], mask_embedding_D: Tensor | None = None) -> dict[str, Tensor]:
    """The state dict of Wav2Vec2Model, HubertModel, WavLMModel or Data2VecAudioModel from a Backbone's.

    Args:
        state: The Backbone's state dict.
        mask_embedding_D: The objective's mask embedding, shape (D,), which transformers keeps with the model.

    Raises:
        DataError: If the Backbone holds what those models do not.
    """
    masked = {} if mask_embedding_D is None else {"masked_spec_embed": mask_embedding_D}
    foreign = RENAMING.exported(state)
    foreign = {key: value.view(1, -1, 1, 1) if key.endswith(_THEIR_SCALE) else value for key, value in foreign.items()}
    return foreign | masked
