import hypothesis
import numpy as np
import pytest
import scipy.fft
import scipy.signal
import torch
import torchaudio
from hypothesis import strategies as st
from torchaudio.compliance import kaldi

from ossicle.core.errors import ConfigError
from ossicle.ops.filterbank import cosine_transform, mel_filters
from ossicle.ops.spectral import differences, log_mel, mfcc, power_spectrum, spectral_clock


def speech_like(rows: int, samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, samples, generator=generator)
    tone = torch.sin(torch.arange(samples) * 0.13)
    return 0.1 * noise.cumsum(-1).diff(dim=-1, prepend=torch.zeros(rows, 1)) + 0.3 * tone


@pytest.mark.parametrize("num_mels", [23, 40, 80])
@pytest.mark.parametrize("hop_ms", [10.0, 20.0])
def test_log_mel_equals_kaldi_fbank(num_mels: int, hop_ms: float) -> None:
    waveform = speech_like(2, 16_123)
    ours = log_mel(waveform, num_mels=num_mels, hop_ms=hop_ms)
    for row in range(2):
        theirs = kaldi.fbank(waveform[row : row + 1], num_mel_bins=num_mels, frame_shift=hop_ms, dither=0.0)
        torch.testing.assert_close(ours[row], theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("hop_ms", [10.0, 20.0])
def test_mfcc_equals_the_39_features_that_hubert_clusters(hop_ms: float) -> None:
    waveform = speech_like(1, 12_345)
    cepstra = kaldi.mfcc(waveform, use_energy=False, frame_shift=hop_ms).T
    first = torchaudio.functional.compute_deltas(cepstra)
    theirs = torch.cat([cepstra, first, torchaudio.functional.compute_deltas(first)]).T
    ours = mfcc(waveform, hop_ms=hop_ms)
    assert ours.shape[-1] == 39
    torch.testing.assert_close(ours[0], theirs, atol=1e-3, rtol=1e-4)


def test_power_spectrum_equals_torchaudios_without_centre_padding_and_scipys() -> None:
    waveform = speech_like(1, 4_000)
    frames = waveform.unfold(-1, 512, 160)
    window = torch.hann_window(512)
    ours = power_spectrum(frames * window)[0]
    spectrogram = torchaudio.transforms.Spectrogram(n_fft=512, hop_length=160, center=False, power=2)
    torch.testing.assert_close(ours, spectrogram(waveform)[0].T, atol=1e-3, rtol=1e-4)
    _, _, theirs = scipy.signal.stft(
        waveform[0].double().numpy(), window=window.double().numpy(), nperseg=512, noverlap=352, boundary=None,
        padded=False, scaling="spectrum",
    )  # fmt: skip
    scaled = np.abs(theirs.T * window.double().sum().item()) ** 2
    np.testing.assert_allclose(ours.numpy(), scaled, rtol=1e-3, atol=1e-3)


def test_mel_bands_lie_where_torchaudios_mel_spectrogram_has_them() -> None:
    ours = mel_filters(80, 512, 16_000, low_hz=20.0, high_hz=0.0, device="cpu")
    theirs = torchaudio.functional.melscale_fbanks(257, 20.0, 8_000.0, 80, 16_000, norm=None, mel_scale="htk")
    bins = torch.arange(257.0)[:, None]
    centres = [(bins * table).sum(0)[10:] / table.sum(0)[10:] for table in (ours, theirs)]
    # Kaldi's triangles are straight in mel, torchaudio's in hertz: the same places to a third of a bin.
    torch.testing.assert_close(*centres, atol=0.35, rtol=0)


def test_the_cosine_transform_is_scipys_with_the_lifter() -> None:
    table = cosine_transform(13, 23, 22.0, "cpu").double().numpy()
    energies = np.random.default_rng(0).normal(size=(5, 23))
    lifter = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    theirs = scipy.fft.dct(energies, norm="ortho")[:, :13] * lifter
    np.testing.assert_allclose(energies @ table, theirs, atol=1e-4)


@hypothesis.given(frames=st.integers(1, 12))
@hypothesis.settings(max_examples=12, deadline=None)
def test_differences_equal_torchaudios_deltas_at_any_length(frames: int) -> None:
    x = torch.randn(2, frames, 3, generator=torch.Generator().manual_seed(frames))
    theirs = torchaudio.functional.compute_deltas(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(differences(x), theirs, atol=1e-6, rtol=1e-5)


@hypothesis.given(samples=st.integers(1, 4_000), hop_ms=st.sampled_from([5.0, 10.0, 20.0]))
@hypothesis.settings(max_examples=60, deadline=None)
def test_the_clock_counts_the_frames_that_come_out(samples: int, hop_ms: float) -> None:
    clock = spectral_clock(hop_ms=hop_ms)
    waveform = speech_like(1, samples)
    assert log_mel(waveform, hop_ms=hop_ms).shape == (1, clock.num_frames(samples), 80)
    assert mfcc(waveform, hop_ms=hop_ms).shape == (1, clock.num_frames(samples), 39)


def test_a_frame_sees_the_samples_that_the_clock_says_and_no_others() -> None:
    waveform = speech_like(1, 4_000)
    clock = spectral_clock(hop_ms=20.0)
    start = clock.offset_samples + 3 * clock.stride_samples
    changed = waveform.clone()
    changed[:, :start] = 0
    changed[:, start + clock.kernel_samples :] = 0
    torch.testing.assert_close(log_mel(waveform, hop_ms=20.0)[:, 3], log_mel(changed, hop_ms=20.0)[:, 3])


def test_silence_is_finite() -> None:
    assert log_mel(torch.zeros(1, 1_000)).isfinite().all()
    assert mfcc(torch.zeros(1, 1_000)).isfinite().all()


def test_a_window_of_no_whole_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"window_ms=25\.03"):
        spectral_clock(window_ms=25.03)


def test_autocast_leaves_features_in_float32() -> None:
    waveform = speech_like(1, 4_000)
    with torch.autocast("cpu", torch.bfloat16):
        cast = mfcc(waveform)
    torch.testing.assert_close(cast, mfcc(waveform), atol=0, rtol=0)


def test_tables_made_in_inference_mode_still_carry_gradients_later() -> None:
    with torch.inference_mode():
        log_mel(torch.randn(1, 1_000), num_mels=37)
    waveform = torch.randn(1, 1_000, requires_grad=True)
    log_mel(waveform, num_mels=37).sum().backward()
    assert waveform.grad is not None


@pytest.mark.parametrize("hop_ms", [10.0, 20.0])
def test_mfccs_of_padded_rows_equal_those_of_each_row_alone(hop_ms: float) -> None:
    waves = speech_like(4, 9_000)
    lengths = torch.tensor([9_000, 400, 6_543, 1_999])
    clock = spectral_clock(hop_ms=hop_ms)
    padded = waves.masked_fill(torch.arange(9_000) >= lengths[:, None], 0)
    found = mfcc(padded, hop_ms=hop_ms, lengths_B=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = mfcc(waves[row : row + 1, :length], hop_ms=hop_ms)[0]
        assert len(alone) == clock.num_frames(length)
        torch.testing.assert_close(found[row, : len(alone)], alone, atol=1e-3, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_features_of_the_cpu() -> None:
    waveform = speech_like(2, 16_000)
    torch.testing.assert_close(mfcc(waveform.cuda()).cpu(), mfcc(waveform), atol=2e-3, rtol=1e-3)
