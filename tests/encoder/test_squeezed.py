from functools import partial

import pytest
import torch
from torch import nn
from transformers import SEWConfig, SEWDConfig, SEWDModel
from transformers.models.sew.modeling_sew import SEWEncoder

from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.squeezed import Squeezed
from ossicle.frontend.wave import Wave
from ossicle.mixer.attention import Attention
from ossicle.mixer.disentangled_attention import DisentangledAttentionStack


def small(**changes: int) -> Squeezed:
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_layers": 2, "ffn_dim": 32, "position_kernel": 31, "position_groups": 4} | changes
    return Squeezed(partial(Attention, num_heads=2, dropout=0.0), **sizes, dropout=0.0, layer_drop=0.0).eval()


def renamed(ours: Squeezed) -> dict[str, torch.Tensor]:
    """Our weights under the names of transformers."""
    names = {
        "position.": "pos_conv_embed.conv.", "norm.": "layer_norm.", "upsample.": "upsample.projection.",
        "mixer.query.": "attention.q_proj.", "mixer.key.": "attention.k_proj.", "mixer.value.": "attention.v_proj.",
        "mixer.out.": "attention.out_proj.", "mixer_norm.": "layer_norm.", "feed_forward_norm.": "final_layer_norm.",
        "feed_forward.expand.": "feed_forward.intermediate_dense.",
        "feed_forward.contract.": "feed_forward.output_dense.",
    }  # fmt: skip
    found = {}
    for key, value in ours.state_dict().items():
        start, rest = "", key
        if key.startswith("blocks."):
            _, layer, rest = key.split(".", 2)
            start = f"layers.{layer}."
        prefix = next(name for name in names if rest.startswith(name))
        found[start + names[prefix] + rest.removeprefix(prefix)] = value
    return found


@pytest.mark.parametrize("frames", [20, 34])
def test_it_equals_the_encoder_of_transformers_sew(frames: int) -> None:
    ours = small()
    config = SEWConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, squeeze_factor=2,
        num_conv_pos_embeddings=31, num_conv_pos_embedding_groups=4, hidden_dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, layerdrop=0.0,
    )  # fmt: skip
    theirs = SEWEncoder(config).eval()
    theirs.load_state_dict(renamed(ours))
    x_BTD = torch.randn(2, frames, 16)
    torch.testing.assert_close(ours(x_BTD).last_BTD, theirs(x_BTD).last_hidden_state, atol=1e-5, rtol=1e-5)


DIM, HEADS, LAYERS, BUCKETS, FARTHEST = 24, 3, 3, 4, 12
CONVOLUTIONS = ((8, 10, 5), (8, 3, 2), (16, 3, 2))


def sew_d() -> Backbone:
    """SEW-D as its experiment builds it, small, with weights that leave nothing at its start."""
    mixer = DisentangledAttentionStack(HEADS, num_buckets=BUCKETS, max_distance=FARTHEST, distance_dropout=0.0)
    encoder = Squeezed(
        mixer, dim=DIM, num_layers=LAYERS, ffn_dim=32, position_groups=4, entry_norm=False, norm_eps=1e-7, dropout=0.0
    )
    model = Backbone(Wave(CONVOLUTIONS), encoder, 0.0)
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def under_their_names(ours: Backbone) -> dict[str, torch.Tensor]:
    """Weights under the names of transformers' SEWDModel."""
    names = {
        "frontend.layers.0.norm.": "feature_extractor.conv_layers.0.layer_norm.",
        "frontend.layers.": "feature_extractor.conv_layers.", "norm.": "layer_norm.", "project.": "feature_projection.",
        "encoder.position.": "encoder.pos_conv_embed.conv.", "encoder.upsample.": "encoder.upsample.projection.",
        "encoder.blocks.0.mixer.distances.weight": "encoder.encoder.rel_embeddings.weight",
        "encoder.blocks.0.mixer.distances.norm.": "encoder.encoder.LayerNorm.",
    }  # fmt: skip
    inside = {
        "mixer.query": "attention.self.query_proj", "mixer.key": "attention.self.key_proj",
        "mixer.value": "attention.self.value_proj", "mixer.out": "attention.output.dense",
        "mixer_norm": "attention.output.LayerNorm", "feed_forward.expand": "intermediate.dense",
        "feed_forward.contract": "output.dense", "feed_forward_norm": "output.LayerNorm",
    }  # fmt: skip
    for layer in range(LAYERS):
        start, end = f"encoder.blocks.{layer}.", f"encoder.encoder.layer.{layer}."
        names |= {f"{start}{one}.": f"{end}{other}." for one, other in inside.items()}
    found = {}
    for key, value in ours.state_dict().items():
        start = next(name for name in names if key.startswith(name))
        found[names[start] + key.removeprefix(start)] = value
    return found


@pytest.mark.parametrize("samples", [820, 2_420])  # 40 and 120 frames
def test_with_disentangled_attention_it_equals_transformers_sew_d_layer_by_layer(samples: int) -> None:
    ours = sew_d()
    config = SEWDConfig(
        hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=32,
        conv_dim=[c for c, _, _ in CONVOLUTIONS], conv_kernel=[k for _, k, _ in CONVOLUTIONS],
        conv_stride=[s for _, _, s in CONVOLUTIONS], num_conv_pos_embeddings=31, num_conv_pos_embedding_groups=4,
        squeeze_factor=2, position_buckets=BUCKETS, max_position_embeddings=FARTHEST, hidden_act="gelu",
        mask_time_prob=0.0, mask_feature_prob=0.0,
    )  # fmt: skip
    assert config.layer_norm_eps == 1e-7
    theirs = SEWDModel(config).double().eval()
    theirs.load_state_dict(under_their_names(ours))
    seen = []
    for layer in theirs.encoder.encoder.layer:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    waveform_BS = torch.randn(2, samples, dtype=torch.float64)
    output = ours(waveform_BS, layers=True)
    expected_BTD = theirs(waveform_BS).last_hidden_state
    assert output.last_BTD.shape == expected_BTD.shape
    # their scale is rounded to float32; a norm's 1e-5 in place of 1e-7 would differ by 1e-6 and more
    for layer, expected_BUD in enumerate(seen, start=1):
        torch.testing.assert_close(output.layers[layer][:, ::2], expected_BUD, atol=2e-7, rtol=2e-7)
    torch.testing.assert_close(output.last_BTD, expected_BTD, atol=2e-7, rtol=2e-7)


def test_without_an_entry_norm_only_attention_drops_anything() -> None:
    model = sew_d().train()
    encoder = model.encoder
    assert isinstance(encoder, Squeezed)
    encoder.layer_drop = 0.0
    for block in encoder.blocks:
        block.mixer.dropout = 0.0
    x_BTD = torch.randn(2, 20, DIM, dtype=torch.float64)
    assert torch.equal(encoder(x_BTD).last_BTD, encoder(x_BTD).last_BTD)
    assert not [name for name in encoder.state_dict() if name.startswith("norm.")]


def test_its_blocks_run_at_the_lower_rate() -> None:
    encoder = small(squeeze=4)
    seen = []
    encoder.blocks[0].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    assert encoder(torch.randn(1, 41, 16)).last_BTD.shape == (1, 41, 16)
    assert seen == [11]


def test_a_squeeze_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="squeeze=0"):
        small(squeeze=0)


def test_positions_begin_as_those_of_wav2vec_2() -> None:
    torch.manual_seed(0)
    encoder = small(dim=256)
    assert encoder.position.weight.std().item() == pytest.approx((4 / (31 * 256)) ** 0.5, rel=0.05)
    assert not encoder.position.bias.any()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("entry_norm", [False, True])
def test_norm_and_dropout_before_the_first_block_are_left_out_only_where_norms_follow(
    norm_first: bool, entry_norm: bool
) -> None:
    kept = norm_first or entry_norm
    encoder = Squeezed(
        partial(Attention, num_heads=2), dim=16, num_layers=1, ffn_dim=32, position_groups=4, dropout=0.5,
        norm_first=norm_first, entry_norm=entry_norm,
    )  # fmt: skip
    assert isinstance(encoder.norm, nn.LayerNorm) == kept
    entered = [encoder(torch.ones(1, 400, 16), layers=True).layers[0] for _ in range(2)]
    assert torch.equal(*entered) == (not kept)


@pytest.mark.parametrize("norm_first", [False, True])
def test_every_norm_adds_to_the_variance_what_is_named(norm_first: bool) -> None:
    encoder = Squeezed(
        partial(Attention, num_heads=2), dim=16, num_layers=2, ffn_dim=32, position_groups=4, norm_first=norm_first,
        norm_eps=1e-3,
    )  # fmt: skip
    assert [part.eps for part in encoder.modules() if isinstance(part, nn.LayerNorm)] == [1e-3] * 5
