import pytest
import torch

from ossicle.core.errors import ConfigError
from ossicle.layer.decoder import ConvolutionDecoder

KEPT = torch.tensor([[0, 2, 5], [1, 3, 4]])


def source() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_it_is_data2vec_2s_decoder_computed_frame_by_frame() -> None:
    torch.manual_seed(0)
    decoder = ConvolutionDecoder(
        4, 3, hidden_dim=6, kernel=3, groups=2, num_layers=2, dropout=0.0, noise_std=0.1
    ).double()
    encoded = torch.randn(2, 3, 4, dtype=torch.float64)
    made = decoder(encoded, KEPT, 6, source())
    rows = (torch.randn(2, 6, 4, generator=source()) * 0.1).double()
    for row in range(2):
        for place, frame in zip(KEPT[row], encoded[row], strict=True):
            rows[row, place] = frame
    for number, convolution in enumerate(decoder.convolutions):
        out = torch.zeros(2, 6, 6, dtype=torch.float64)
        width = rows.shape[2] // 2
        for row in range(2):
            for frame in range(6):
                for channel in range(6):
                    group = channel // 3
                    total = convolution.bias[channel]
                    for tap in (-1, 0, 1):
                        if 0 <= frame + tap < 6:
                            heard = rows[row, frame + tap, group * width : (group + 1) * width]
                            total = total + convolution.weight[channel, :, tap + 1] @ heard
                    out[row, frame, channel] = total
        normed = (out - out.mean(-1, keepdim=True)) / (out.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        active = 0.5 * normed * (1 + torch.erf(normed / 2**0.5))
        rows = rows + active if number else active  # widths differ in the first layer
    torch.testing.assert_close(made, rows @ decoder.project.weight.T + decoder.project.bias)


def test_the_gradient_goes_to_the_kept_frames() -> None:
    decoder = ConvolutionDecoder(4, 3, hidden_dim=6, kernel=3, groups=2, num_layers=1)
    encoded = torch.randn(2, 3, 4, requires_grad=True)
    decoder(encoded, KEPT, 6, source()).square().sum().backward()
    assert encoded.grad is not None
    assert (encoded.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("changes", [{"kernel": 4}, {"groups": 3}])
def test_shapes_that_do_not_fit_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="a decoder of kernel"):
        ConvolutionDecoder(4, 3, **({"hidden_dim": 6, "kernel": 3, "groups": 2} | changes))
