import pytest
import torch

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


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernel of 4"):
        ConvolutionPredictor(6, kernel=4)
