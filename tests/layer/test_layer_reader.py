from functools import partial

import pytest
import torch

from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.conformer import Conformer
from ossicle.encoder.convolutional import Convolutional
from ossicle.encoder.hierarchical import Hierarchical
from ossicle.encoder.squeezed import Squeezed
from ossicle.frontend.logmel import LogMel
from ossicle.layer.layer_reader import LayerReader
from ossicle.mixer.attention import Attention
from tests.objective.teaching import small_model


def test_blocks_are_the_encoders_own_layers_without_its_input() -> None:
    model = small_model().eval()
    x = torch.randn(2, 9, 16)
    read = LayerReader(model, "blocks")(lambda layers: model.encode(x, layers=layers))
    wanted = model.encode(x, layers=True).layers
    assert len(read) == 3
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(read, wanted[1:], strict=True))


def test_a_feed_forward_networks_output_is_what_its_block_adds_before_the_norm() -> None:
    model = small_model().eval()
    x = torch.randn(2, 9, 16)
    entering = model.encode(x, layers=True).layers
    read = LayerReader(model, "feed_forward")(lambda layers: model.encode(x, layers=layers))
    assert len(read) == 3
    for block, before, after, branch in zip(model.encoder.blocks, entering[:-1], entering[1:], read, strict=True):
        mixed = block.mixer_norm(before + block.mixer(before))
        torch.testing.assert_close(block.feed_forward_norm(mixed + branch), after)
    again = LayerReader(small_model().eval(), "feed_forward")
    with pytest.raises(ValueError, match="longer"):  # another model's hooks hear nothing
        again(lambda layers: model.encode(x, layers=layers))


def test_of_two_networks_in_a_block_the_last_is_read() -> None:
    encoder = Conformer(partial(Attention, num_heads=2), dim=16, num_layers=2, ffn_dim=32, kernel=3, position_kernel=4)
    model = Backbone(LogMel(num_mels=12), encoder).eval()
    x = torch.randn(1, 7, 16)
    heard = []
    encoder.blocks[1].second.register_forward_hook(lambda _module, _inputs, output: heard.append(output))
    read = LayerReader(model, "feed_forward")(lambda layers: model.encode(x, layers=layers))
    assert len(read) == 2
    assert torch.equal(read[1], heard[0])


def test_an_encoder_without_feed_forward_networks_is_refused_with_what_to_set() -> None:
    model = Backbone(LogMel(num_mels=12), Convolutional(partial(Attention), dim=16, num_layers=2))
    with pytest.raises(ConfigError, match="0 feed-forward networks in 2 blocks") as caught:
        LayerReader(model, "feed_forward")
    assert "read=blocks" in caught.value.mend


SMALL = {"dim": 16, "ffn_dim": 32, "position_kernel": 4, "position_groups": 2}


@pytest.mark.parametrize("frames", [12, 13])  # a whole number of the lowest rate's frames, and not
def test_what_a_layer_makes_at_a_lower_rate_is_repeated_to_the_encoders_clock(frames: int) -> None:
    mixer = partial(Attention, num_heads=2)
    squeezed = Squeezed(mixer, num_layers=2, squeeze=3, **SMALL)
    tall = Hierarchical(mixer, layers_by_group=[1, 2, 1, 1, 1], factors=[2, 3], **SMALL)
    for encoder, factors in ((squeezed, [3, 3]), (tall, [1, 2, 2, 6, 2, 1])):
        model = Backbone(LogMel(num_mels=12), encoder).eval()
        heard: list[torch.Tensor] = []
        for block in encoder.blocks:
            block.feed_forward.register_forward_hook(lambda _module, _inputs, out, heard=heard: heard.append(out))
        x = torch.randn(2, frames, 16)
        read = LayerReader(model, "feed_forward")(lambda layers, model=model, x=x: model.encode(x, layers=layers))
        assert [frame.shape for frame in read] == [x.shape] * len(factors)
        assert len({tuple(out.shape) for out in heard}) == len(set(factors))
        for repeated, out, factor in zip(read, heard, factors, strict=True):
            for frame in range(frames):
                assert torch.equal(repeated[:, frame], out[:, frame // factor])
