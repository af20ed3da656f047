from functools import partial

import pytest
import torch
from transformers import SEWConfig
from transformers.models.sew.modeling_sew import SEWEncoder

from ossicle.core.errors import ConfigError
from ossicle.encoder.squeezed import Squeezed
from ossicle.mixer.attention import Attention


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


def test_its_blocks_run_at_the_lower_rate() -> None:
    encoder = small(squeeze=4)
    seen = []
    encoder.blocks[0].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    assert encoder(torch.randn(1, 41, 16)).last_BTD.shape == (1, 41, 16)
    assert seen == [11]


def test_a_squeeze_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="squeeze=0"):
        small(squeeze=0)
