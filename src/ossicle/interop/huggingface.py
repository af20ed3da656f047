"""Weights of transformers' wav2vec 2.0 and HuBERT models, to and from a Backbone.

Base models are ``frontend=wave`` with norms after the branches; large ones are ``frontend=wave_layer_norm`` with
``norm_first``; data2vec's are ``frontend=wave_layer_norm`` with norms after the branches and ``position_layers=5``.
transformers normalises audio in its feature extractor where a checkpoint's ``do_normalize`` asks for it, as those with
layer norms in the convolutions do. Weights do not tell, so the frontend is built with ``normalise`` there.
"""

from collections.abc import Mapping
from typing import Final

from torch import Tensor

from ossicle.interop.renaming import Renaming

_BLOCK: Final = (
    ("attention.q_proj.{p}", "mixer.query.{p}"),
    ("attention.k_proj.{p}", "mixer.key.{p}"),
    ("attention.v_proj.{p}", "mixer.value.{p}"),
    ("attention.out_proj.{p}", "mixer.out.{p}"),
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
    prefixes=("wav2vec2.", "hubert.", "data2vec_audio."),
    left_out=("masked_spec_embed", "quantizer.", "project_hid.", "project_q.", "lm_head.", "projector.", "classifier."),
)


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Backbone's state dict from that of Wav2Vec2Model, Wav2Vec2ForPreTraining, HubertModel or a model with a head.

    Args:
        state: The foreign state dict.

    Raises:
        DataError: If a key is neither the encoder's nor a known head's.
    """
    return RENAMING.imported(state)


def to_huggingface(state: Mapping[str, Tensor], mask_embedding_D: Tensor | None = None) -> dict[str, Tensor]:
    """The state dict of Wav2Vec2Model or HubertModel from a Backbone's.

    Args:
        state: The Backbone's state dict.
        mask_embedding_D: The objective's mask embedding, shape (D,), which transformers keeps with the model.

    Raises:
        DataError: If the Backbone holds what those models do not.
    """
    masked = {} if mask_embedding_D is None else {"masked_spec_embed": mask_embedding_D}
    return RENAMING.exported(state) | masked
