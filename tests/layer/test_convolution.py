import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torchaudio.models.wav2vec2.components import ConvLayerBlock, ConvolutionalPositionalEmbedding

from ossicle.core.errors import ConfigError
from ossicle.layer.convolution import ConvolutionBlock, ConvolutionPosition, NormalisedConvolution, TapNorm


@pytest.mark.parametrize("kernel", [3, 8, 128])
@pytest.mark.parametrize("frames", [1, 5, 40])
def test_positions_equal_torchaudios(kernel: int, frames: int) -> None:
    ours, theirs = ConvolutionPosition(32, kernel, 4), ConvolutionalPositionalEmbedding(32, kernel, 4)
    theirs.load_state_dict(ours.state_dict())
    x_BTD = torch.randn(2, frames, 32)
    out = ours(x_BTD)
    assert out.shape == x_BTD.shape
    torch.testing.assert_close(out, theirs(x_BTD))


def test_position_weights_have_one_norm_for_each_tap() -> None:
    position = ConvolutionPosition(32, 8, 4)
    shapes = {name: tuple(value.shape) for name, value in position.state_dict().items()}
    assert shapes == {
        "conv.bias": (32,),
        "conv.parametrizations.weight.original0": (1, 1, 8),
        "conv.parametrizations.weight.original1": (32, 8, 8),
    }


def test_groups_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="16 position groups do not divide the width 100"):
        ConvolutionPosition(100)


def test_a_block_equals_torchaudios() -> None:
    ours = ConvolutionBlock(3, 5, 4, 2, norm=nn.Identity(), bias=True)
    theirs = ConvLayerBlock(3, 5, 4, 2, bias=True, layer_norm=None)
    theirs.load_state_dict(ours.state_dict())
    x_BTC = torch.randn(2, 22, 3)
    expected_BCT = theirs(x_BTC.transpose(1, 2), None)[0]
    torch.testing.assert_close(ours(x_BTC, 10)[:, :10], expected_BCT.transpose(1, 2))


def test_a_normalised_convolution_equals_torchaudios_with_group_norm() -> None:
    ours = NormalisedConvolution(6, 10, 5, bias=False)
    nn.init.normal_(ours.norm.weight)
    nn.init.normal_(ours.norm.bias)
    theirs = ConvLayerBlock(1, 6, 10, 5, bias=False, layer_norm=nn.GroupNorm(6, 6))
    theirs.load_state_dict({key.replace("norm.", "layer_norm."): value for key, value in ours.state_dict().items()})
    x_BTC = torch.randn(2, 200, 1)
    expected_BCT = theirs(x_BTC.transpose(1, 2), None)[0]
    torch.testing.assert_close(ours(x_BTC, 39)[:, :39], expected_BCT.transpose(1, 2), atol=2e-6, rtol=1e-5)


def test_a_bias_before_the_norm_changes_nothing() -> None:
    ours = NormalisedConvolution(6, 10, 5, bias=True)
    theirs = ConvLayerBlock(1, 6, 10, 5, bias=True, layer_norm=nn.GroupNorm(6, 6))
    theirs.load_state_dict({key.replace("norm.", "layer_norm."): value for key, value in ours.state_dict().items()})
    x_BTC = torch.randn(2, 200, 1)
    expected_BCT = theirs(x_BTC.transpose(1, 2), None)[0]
    torch.testing.assert_close(ours(x_BTC, 39)[:, :39], expected_BCT.transpose(1, 2), atol=2e-6, rtol=1e-5)


def test_blocks_start_with_he_initialisation() -> None:
    block = ConvolutionBlock(64, 256, 3, 2, norm=nn.Identity(), bias=False)
    assert block.conv.weight.std().item() == pytest.approx((2 / (64 * 3)) ** 0.5, rel=0.05)


def test_a_stride_beyond_the_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="stride of 3"):
        ConvolutionBlock(4, 4, 2, 3, norm=nn.Identity(), bias=False)


def test_tap_norm_is_torchs_weight_norm_with_its_keys_and_gradients() -> None:
    torch.manual_seed(0)
    convs = [nn.Conv1d(6, 6, 5, groups=2) for _ in range(2)]
    convs[1].load_state_dict(convs[0].state_dict())
    ours, theirs = convs
    parametrize.register_parametrization(ours, "weight", TapNorm())
    parametrizations.weight_norm(theirs, dim=2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for conv in convs:
        with torch.no_grad():
            conv.parametrizations.weight.original0.mul_(torch.linspace(0.5, 2, 5))
        (conv.weight * torch.linspace(-1, 1, conv.weight.numel()).view_as(conv.weight)).sum().backward()
    torch.testing.assert_close(ours.weight, theirs.weight)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)
