import torch
from torch import nn
from torchaudio.models.wav2vec2.components import FeedForward as Theirs

from ossicle.layer.feed_forward import FeedForward


def test_it_equals_torchaudios() -> None:
    ours, theirs = FeedForward(8, 32), Theirs(8, 32, 0.0, 0.0)
    names = {"expand": "intermediate_dense", "contract": "output_dense"}
    theirs.load_state_dict(
        {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in ours.state_dict().items()}
    )
    x_BTD = torch.randn(2, 5, 8)
    torch.testing.assert_close(ours(x_BTD), theirs(x_BTD))


def test_it_drops_out_only_in_training() -> None:
    layer = FeedForward(8, 32, dropout=0.5, activation_dropout=0.5)
    x_BTD = torch.ones(1, 4, 8)
    assert not torch.equal(layer(x_BTD), layer(x_BTD))
    layer.eval()
    assert torch.equal(layer(x_BTD), layer(x_BTD))


def test_weights_start_small_and_biases_at_zero() -> None:
    layer = FeedForward(64, 256)
    assert abs(layer.expand.weight.std().item() - 0.02) < 0.001
    assert not layer.contract.bias.any()


def test_a_map_that_stands_in_place_of_the_first_one_has_the_same_gelu_after_it() -> None:
    layer, x_BTD = FeedForward(8, 16).eval(), torch.randn(2, 5, 8)
    expected = layer(x_BTD)
    layer.expand = nn.Sequential(layer.expand)  # as one in float8, or with an adapter
    torch.testing.assert_close(layer(x_BTD), expected)
