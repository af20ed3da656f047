import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ossicle.core.errors import ConfigError
from ossicle.layer.sampling import ConvolutionSampling, PooledSampling, Sampling, SamplingFactory

DIM = 4
RATES = pytest.mark.parametrize(("up", "down"), [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)])
KERNELS = pytest.mark.parametrize("kernel", [1, 3, 7])


def convolutional(up: int, down: int, kernel: int = 1) -> ConvolutionSampling:
    torch.manual_seed(0)
    built = ConvolutionSampling(DIM, up, down, kernel=kernel)
    for norm in (built.spread_norm, built.gather_norm):
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    return built


def pooled(up: int, down: int) -> PooledSampling:
    torch.manual_seed(0)
    built = PooledSampling(DIM, up, down)
    nn.init.normal_(built.linear.weight)
    nn.init.normal_(built.linear.bias)
    return built


def adapter(own: ConvolutionSampling, x_BTD: Tensor) -> Tensor:
    """What MR-HuBERT's authors compute, with torch's functions on channels-first frames and the same weights."""
    up, down, kernel = own.up, own.down, own.gather.weight.shape[2]
    first = x_BTD.transpose(1, 2).repeat_interleave(up, dim=2)
    spread = functional.conv_transpose1d(x_BTD.transpose(1, 2), own.spread.weight, stride=up, output_padding=up - 1)
    spread = functional.group_norm(spread, 1, own.spread_norm.weight, own.spread_norm.bias)
    x = (functional.gelu(spread)[..., : first.shape[2]] + first) * math.sqrt(0.4)
    kept = functional.conv1d(x, own.gather.weight, stride=down, padding=(kernel - 1) // 2)
    kept = functional.group_norm(kept, 1, own.gather_norm.weight, own.gather_norm.bias)
    x = (functional.gelu(kept) + x[..., ::down]) * math.sqrt(0.4)
    return ((x + first[..., ::down]) * math.sqrt(0.4)).transpose(1, 2)


def normalised(frames: list[list[float]], norm: nn.Module) -> list[list[float]]:
    """Group norm of one group and GELU, value by value."""
    values = [value for frame in frames for value in frame]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-5)
    gain, bias = norm.weight.tolist(), norm.bias.tolist()  # ty: ignore[call-non-callable, unresolved-attribute]
    scaled = [[(v - mean) / deviation * g + b for v, g, b in zip(f, gain, bias, strict=True)] for f in frames]
    return [[v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in frame] for frame in scaled]


def loop(own: ConvolutionSampling, x: list[list[float]], kernel: int) -> list[list[float]]:
    """The same frame by frame: the authors' sums in float64."""
    up, down, scale, num = own.up, own.down, math.sqrt(0.4), len(x)
    spreading, gathering = own.spread.weight.tolist(), own.gather.weight.tolist()  # in, out, tap; out, in, tap
    wide = [[0.0] * DIM for _ in range((num - 1) * up + kernel + up - 1)]
    for t in range(num):
        for tap in range(kernel):
            for out in range(DIM):
                wide[t * up + tap][out] += sum(x[t][i] * spreading[i][out][tap] for i in range(DIM))
    wide = normalised(wide, own.spread_norm)
    y = [[scale * (wide[t][d] + x[t // up][d]) for d in range(DIM)] for t in range(num * up)]
    kept = [[0.0] * DIM for _ in range(-(-num * up // down))]
    for u, frame in enumerate(kept):
        for tap in range(kernel):
            at = u * down + tap - kernel // 2
            if 0 <= at < len(y):
                for out in range(DIM):
                    frame[out] += sum(y[at][i] * gathering[out][i][tap] for i in range(DIM))
    kept = normalised(kept, own.gather_norm)
    z = [[scale * (kept[u][d] + y[u * down][d]) for d in range(DIM)] for u in range(len(kept))]
    return [[scale * (z[u][d] + x[u * down // up][d]) for d in range(DIM)] for u in range(len(kept))]


@RATES
@KERNELS
@pytest.mark.parametrize("frames", [5, 8, 11])
def test_convolutions_make_what_the_authors_sums_make_in_a_loop(up: int, down: int, kernel: int, frames: int) -> None:
    own = convolutional(up, down, kernel).double()
    x_BTD = torch.randn(2, frames, DIM, dtype=torch.float64)
    out_BUD, valid = own(x_BTD)
    assert valid is None
    expected = torch.tensor([loop(own, row.tolist(), kernel) for row in x_BTD], dtype=torch.float64)
    torch.testing.assert_close(out_BUD, expected)


@RATES
@KERNELS
def test_convolutions_and_their_gradients_are_those_of_torchs_functions(up: int, down: int, kernel: int) -> None:
    own = convolutional(up, down, kernel).double()
    x_BTD = torch.randn(2, 9, DIM, dtype=torch.float64, requires_grad=True)
    theirs_BUD = adapter(own, x_BTD)
    weight = torch.randn_like(theirs_BUD)
    given = [x_BTD, *own.parameters()]
    expected = torch.autograd.grad((theirs_BUD * weight).sum(), given)
    ours_BUD = own(x_BTD)[0]
    torch.testing.assert_close(ours_BUD, theirs_BUD)
    torch.testing.assert_close(torch.autograd.grad((ours_BUD * weight).sum(), given), expected)


def test_pooling_takes_means_and_repeats_by_hand() -> None:
    down, up = pooled(1, 2), pooled(3, 1)
    for own in (down, up):
        nn.init.eye_(own.linear.weight)
        nn.init.constant_(own.linear.bias, 1.0)
    x_BTD = torch.tensor([1.0, 3.0, 4.0, 6.0, 9.0])[None, :, None].expand(1, 5, DIM)
    assert down(x_BTD)[0][0, :, 0].tolist() == [3.0, 6.0, 10.0]
    assert up(x_BTD[:, :2])[0][0, :, 0].tolist() == [2.0, 2.0, 2.0, 4.0, 4.0, 4.0]


@RATES
@pytest.mark.parametrize("kernel", [0, 1, 3, 7])
def test_a_padded_row_equals_the_row_alone(up: int, down: int, kernel: int) -> None:
    own: Sampling = convolutional(up, down, kernel).double() if kernel else pooled(up, down).double()
    lengths = [13, 6, 9, 1]
    x_BTD = torch.randn(4, 13, DIM, dtype=torch.float64)
    valid_BT = torch.arange(13) < torch.tensor(lengths)[:, None]
    out_BUD, real_BU = own(torch.where(valid_BT[..., None], x_BTD, 1e3), valid_BT)
    assert real_BU is not None
    assert real_BU.shape == out_BUD.shape[:2]
    for row, length in enumerate(lengths):
        alone, _ = own(x_BTD[row : row + 1, :length])
        assert real_BU[row].tolist() == [place < alone.shape[1] for place in range(real_BU.shape[1])]
        torch.testing.assert_close(out_BUD[row, : alone.shape[1]], alone[0])


@pytest.mark.parametrize("make", [convolutional, pooled])
@pytest.mark.parametrize("frames", [1, 7, 10])
def test_frames_are_as_many_as_the_rates_say_in_one_graph_and_in_bfloat16(make: SamplingFactory, frames: int) -> None:
    torch._dynamo.reset()
    for up, down in ((1, 2), (2, 1), (2, 3)):
        own = make(up=up, down=down)  # ty: ignore[missing-argument]
        x_BTD = torch.randn(2, frames, DIM)
        out_BUD = own(x_BTD)[0]
        assert out_BUD.shape == (2, -(-frames * up // down), DIM)
        compiled = torch.compile(own, backend="eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(compiled(x_BTD)[0], out_BUD)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(own(x_BTD)[0].float(), out_BUD, atol=0.1, rtol=0.05)


def test_a_kernel_without_a_centre_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernel=4 has no centre"):
        convolutional(1, 2, kernel=4)
