import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.layer.predictor import ConvolutionPredictor


def test_a_row_is_predicted_alike_alone_and_among_others() -> None:
    torch.manual_seed(0)
    predictor = ConvolutionPredictor(6, hidden_dim=8, kernel=3).train()
    x = torch.randn(3, 9, 6)
    torch.testing.assert_close(predictor(x)[1:2], predictor(x[1:2]))


def test_a_prediction_hears_its_kernels_reach_and_no_further() -> None:
    predictor = ConvolutionPredictor(6, hidden_dim=8, kernel=5, num_layers=2)
    x = torch.randn(1, 21, 6, requires_grad=True)
    predictor(x)[0, 10].sum().backward()
    assert x.grad is not None
    heard = x.grad[0].abs().sum(-1) > 0
    assert heard.nonzero().flatten().tolist() == list(range(6, 15))


class Frames(nn.LayerNorm):
    """torch's layer norm of channels that stand before frames."""

    @override
    def forward(self, x_BCT: Tensor) -> Tensor:  # ty: ignore[invalid-method-override]
        return super().forward(x_BCT.transpose(1, 2)).transpose(1, 2)


def test_essls_predictor_is_three_convolutions_each_with_norm_and_relu() -> None:
    torch.manual_seed(0)
    predictor = ConvolutionPredictor(6, hidden_dim=8, bias=False, dropout=0.1, last_activation=True).eval()
    layers: list[nn.Module] = []
    for dim, channels, kernel in ((6, 8, 5), (8, 8, 5), (8, 6, 1)):
        layers += [nn.Conv1d(dim, channels, kernel, padding="same", bias=False), Frames(channels), nn.ReLU()]
    reference = nn.Sequential(*layers)
    ours = [*predictor.convolutions, predictor.project]
    norms = [*predictor.norms, predictor.last_norm]
    with torch.no_grad():
        for place, (layer, norm) in enumerate(zip(ours, norms, strict=True)):
            reference[3 * place].weight.copy_(layer.weight.view_as(reference[3 * place].weight))
            for name, parameter in norm.named_parameters():
                reference[3 * place + 1].get_parameter(name).copy_(parameter.normal_())
    x_BTF = torch.randn(2, 11, 6)
    predicted = predictor(x_BTF)
    torch.testing.assert_close(predicted, reference(x_BTF.transpose(1, 2)).transpose(1, 2))
    assert sum(p.numel() for p in predictor.parameters()) == sum(p.numel() for p in reference.parameters())
    assert not torch.equal(predictor.train()(x_BTF), predicted)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernel of 4"):
        ConvolutionPredictor(6, kernel=4)
