import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional
from transformers import SEWConfig
from transformers.models.sew.modeling_sew import SEWFeatureEncoder

from ossicle.core.errors import DataError
from ossicle.frontend.wave import ConvolutionalFrontend, Wave, WaveLayerNorm, WaveReLU
from ossicle.launch.parts import option

THIN = ((8, 10, 5), *((8, 3, 2),) * 4, *((8, 2, 2),) * 2)
KINDS = pytest.mark.parametrize("kind", [Wave, WaveLayerNorm, WaveReLU])


def build(kind: type[ConvolutionalFrontend], **arguments: object) -> ConvolutionalFrontend:
    torch.manual_seed(0)
    return kind(THIN, **arguments).eval()


@hypothesis.given(samples=st.integers(400, 6_000))
@hypothesis.settings(max_examples=40, deadline=None)
def test_the_clock_counts_the_frames_that_come_out(samples: int) -> None:
    frontend = build(Wave)
    frames = frontend(torch.randn(1, samples))
    assert frames.valid_BT is None
    assert frames.features_BTC.shape == (1, frontend.clock.num_frames(samples), frontend.dim)


def test_the_default_sees_25_ms_every_20_ms() -> None:
    with torch.device("meta"):
        frontend = Wave()
    assert (frontend.clock.kernel_samples, frontend.clock.stride_samples, frontend.dim) == (400, 320, 512)
    assert frontend(torch.empty(2, 16_000, device="meta")).features_BTC.shape == (2, 49, 512)


@KINDS
@pytest.mark.parametrize("normalise", [False, True])
@hypothesis.given(lengths=st.lists(st.integers(400, 3_000), min_size=2, max_size=4))
@hypothesis.settings(max_examples=15, deadline=None)
def test_a_padded_row_equals_the_row_alone(
    kind: type[ConvolutionalFrontend], normalise: bool, lengths: list[int]
) -> None:
    frontend = build(kind, conv_bias=True, normalise=normalise)
    waveform_BS = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveform_BS[row, :length] = torch.randn(length)
    frames = frontend(waveform_BS, torch.tensor(lengths))
    assert frames.valid_BT is not None
    for row, length in enumerate(lengths):
        alone = frontend(waveform_BS[row : row + 1, :length]).features_BTC[0]
        assert frames.valid_BT[row].sum() == len(alone)
        torch.testing.assert_close(frames.features_BTC[row, : len(alone)], alone, atol=1e-5, rtol=1e-4)


@KINDS
def test_the_gradient_into_the_convolutions_is_scaled(kind: type[ConvolutionalFrontend]) -> None:
    grads = []
    waveform_BS = torch.randn(1, 2_000)
    for scale in (1.0, 0.1):
        frontend = build(kind, gradient_scale=scale)
        frontend(waveform_BS).features_BTC.square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in frontend.parameters() if p.grad is not None]))
    torch.testing.assert_close(grads[1], 0.1 * grads[0])


@KINDS
@pytest.mark.parametrize("normalise", [False, True])
def test_bf16_stays_finite_on_silence_and_on_noise(kind: type[ConvolutionalFrontend], normalise: bool) -> None:
    frontend = build(kind, normalise=normalise).bfloat16()
    for waveform_BS in (torch.zeros(1, 2_000), torch.randn(1, 2_000)):
        out = frontend(waveform_BS.bfloat16(), torch.tensor([1_500])).features_BTC
        assert out.dtype == torch.bfloat16
        assert out.isfinite().all()


@KINDS
def test_normalised_rows_are_those_of_a_loop_over_their_real_samples(kind: type[ConvolutionalFrontend]) -> None:
    plain, normalising = build(kind, conv_bias=True), build(kind, conv_bias=True, normalise=True)
    lengths = [2_000, 1_200, 700]
    waveform_BS = 0.01 * torch.randn(3, 2_000) + 0.02
    rows = []
    for row, length in enumerate(lengths):
        samples = [float(sample) for sample in waveform_BS[row, :length].double()]
        mean = sum(samples) / length
        variance = sum((sample - mean) ** 2 for sample in samples) / length
        rows.append(torch.tensor([(sample - mean) / (variance + 1e-5) ** 0.5 for sample in samples]))
    frames = normalising(waveform_BS, torch.tensor(lengths))
    assert frames.valid_BT is not None
    for row, samples_S in enumerate(rows):
        wanted_TC = plain(samples_S[None]).features_BTC[0]
        assert frames.valid_BT[row].sum() == len(wanted_TC)
        torch.testing.assert_close(frames.features_BTC[row, : len(wanted_TC)], wanted_TC, atol=1e-4, rtol=1e-3)
        alone = normalising(waveform_BS[row : row + 1, : lengths[row]]).features_BTC[0]
        torch.testing.assert_close(alone, wanted_TC, atol=1e-4, rtol=1e-3)


def test_normalised_quiet_speech_is_not_drowned_by_the_convolutions_biases() -> None:
    loud_BS = torch.randn(2, 4_000)
    plain, normalising = build(WaveLayerNorm, conv_bias=True), build(WaveLayerNorm, conv_bias=True, normalise=True)
    expected = normalising(loud_BS).features_BTC
    torch.testing.assert_close(normalising(0.1 * loud_BS + 0.3).features_BTC, expected, atol=2e-2, rtol=2e-2)
    assert (plain(0.1 * loud_BS + 0.3).features_BTC - expected).abs().max() > 0.3


def test_a_waveform_shorter_than_a_frame_is_refused() -> None:
    with pytest.raises(DataError, match="399 samples"):
        build(Wave)(torch.randn(1, 399))


def test_the_compact_stack_equals_the_feature_encoder_of_transformers_sew() -> None:
    node = option("wave_compact", "frontend")
    thin = [[channels // 16, kernel, stride] for channels, kernel, stride in node["convolutions"]]
    ours = Wave(thin).eval()
    config = SEWConfig(conv_dim=[c for c, _, _ in thin])
    assert [k for _, k, _ in thin] == list(config.conv_kernel)
    assert [s for _, _, s in thin] == list(config.conv_stride)
    assert [c for c, _, _ in node["convolutions"]] == list(SEWConfig().conv_dim)
    theirs = SEWFeatureEncoder(config).eval()
    names = {
        key: "conv_" + key.replace("norm.", "layer_norm.") if ".norm." in key else "conv_" + key
        for key in ours.state_dict()
    }
    theirs.load_state_dict({names[key]: value for key, value in ours.state_dict().items()})
    waveform_BS = torch.randn(2, 4_000)
    expected = theirs(waveform_BS).transpose(1, 2)
    torch.testing.assert_close(ours(waveform_BS).features_BTC, expected, atol=1e-5, rtol=1e-4)


def test_cpcs_stack_gives_100_frames_a_second_by_norm_and_relu() -> None:
    node = option("wave_cpc", "frontend")
    frontend = WaveReLU([[6, kernel, stride] for _, kernel, stride in node["convolutions"]], gradient_scale=1.0).eval()
    assert frontend.clock.frames_per_s == 100
    x_BCT = waveform_BCT = torch.randn(2, 1, 2_000)
    for layer, (_, _, stride) in zip(frontend.layers, node["convolutions"], strict=True):
        x_BCT = functional.conv1d(x_BCT, layer.conv.weight, layer.conv.bias, stride)
        x_BCT = functional.relu(functional.layer_norm(x_BCT.transpose(1, 2), (6,))).transpose(1, 2)
    features_BTC = frontend(waveform_BCT[:, 0]).features_BTC
    torch.testing.assert_close(features_BTC, x_BCT.transpose(1, 2), atol=1e-5, rtol=1e-4)


@KINDS
def test_its_clock_counts_at_the_rate_of_the_waveform(kind: type[ConvolutionalFrontend]) -> None:
    clock = build(kind, rate_hz=8_000).clock
    assert (clock.rate_hz, clock.frames_per_s) == (8_000, 25)
