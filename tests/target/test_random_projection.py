from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torchaudio.compliance.kaldi import fbank

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.target.random_projection import RandomProjection, nearest_code, random_tables
from tests.lazy import forget_lazy_modules

WAVE = FrameClock().then(400, 320)
MEL = FrameClock().then(400, 160).then(2, 2)


def sound(rows: int = 2, samples: int = 16_000, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16_000
    noise = torch.randn(rows, samples, generator=source) * 0.01
    return noise + 0.3 * torch.sin(2 * torch.pi * (200 + 900 * time) * time) * (time * 7).sin()


def batch_of(waveform: Tensor) -> Batch:
    index = torch.arange(len(waveform))
    return Batch(waveform, 0, index, index)


@given(frames=st.integers(1, 30), dim=st.integers(1, 20), codes=st.integers(1, 60), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_codes_have_the_least_distance_between_unit_vectors(frames: int, dim: int, codes: int, seed: int) -> None:
    projection, codebook = random_tables(dim, 4, codes, seed)
    x = torch.randn(2, frames, dim, generator=torch.Generator().manual_seed(seed))
    ours = nearest_code(x, projection, codebook)
    projected = x.double() @ projection.double()
    unit = projected / projected.norm(dim=-1, keepdim=True)
    distances = (unit.unsqueeze(2) - codebook.double()).norm(dim=-1)
    chosen = distances.gather(2, ours.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(chosen, distances.min(-1).values, atol=1e-5, rtol=0)


@given(samples=st.integers(400, 16_000), seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_codes_equal_speechbrains_quantiser_with_the_same_tables_on_the_same_frames(samples: int, seed: int) -> None:
    quantisers = pytest.importorskip(
        "speechbrain.nnet.quantisers", reason="speechbrain, which this target is held to, is not installed"
    )
    forget_lazy_modules()
    target, waveform = RandomProjection(WAVE, 512, num_classes=300, seed=seed), sound(3, samples, seed)
    theirs = quantisers.RandomProjectionQuantizer(160, 16, 300)
    theirs.load_state_dict({"P": target.projection_CK, "CB": target.codebook_VK})
    frames = target.frames(waveform).double()
    expected = theirs.double()(frames)
    assert torch.equal(nearest_code(frames, theirs.P, theirs.CB), expected)
    nearest = (functional.normalize(frames @ theirs.P, dim=-1) @ theirs.CB.t()).topk(2).values
    clear = nearest[..., 0] - nearest[..., 1] > 1e-5  # where no rounding of float32 can choose otherwise
    assert float(clear.float().mean()) > 0.9
    assert torch.equal(target(batch_of(waveform), WAVE)[clear], expected[clear])


def test_frames_of_a_mel_clock_are_kaldis_normalised_and_stacked() -> None:
    waveform = sound(samples=16_000)
    frames = RandomProjection(MEL, 160).frames(waveform)
    assert frames.shape == (2, 49, 160)
    for row in range(2):
        mels = fbank(waveform[row : row + 1], num_mel_bins=80, dither=0.0, sample_frequency=16_000)[:98].double()
        mels = (mels - mels.mean(0)) / mels.std(0, correction=0)
        torch.testing.assert_close(frames[row].double(), mels.reshape(49, 160), atol=2e-2, rtol=0)


@pytest.mark.parametrize("clock", [WAVE, MEL, FrameClock().then(10, 5).then(64, 64), FrameClock().then(800, 640)])
def test_a_click_is_loudest_in_the_frame_whose_centre_is_nearest(clock: FrameClock) -> None:
    target = RandomProjection(clock, 8)
    for click in (1500, 7777, 12_000):
        waveform = sound(1) * 0 + torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)) * 1e-3
        waveform[:, click] = 1.0
        frames = target.frames(waveform)
        assert frames.shape[1] == clock.num_frames(16_000)
        centre = clock.centre_samples(int(frames[0].mean(-1).argmax()))
        assert abs(centre - click) <= clock.stride_samples / 2 + 80  # half a hop: a click between two mel frames


@pytest.mark.parametrize("samples", [400, 401, 719, 720, 16_000, 16_123, 17_000])
def test_every_frame_of_the_model_has_a_class(samples: int) -> None:
    target = RandomProjection(WAVE, 512, num_classes=50)
    codes = target(batch_of(sound(3, samples)), WAVE)
    assert codes.shape == (3, WAVE.num_frames(samples))
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < 50


def test_tables_and_codes_have_their_golden_values() -> None:
    projection, codebook = random_tables(160, 16, 8192, seed=0)
    row, code = [-0.03006899, -0.04255842, -0.11496125], [-0.36131868, -0.26294565, 0.04396189]
    torch.testing.assert_close(projection[0, :3], torch.tensor(row), atol=1e-6, rtol=0)
    torch.testing.assert_close(codebook[0, :3], torch.tensor(code), atol=1e-6, rtol=0)
    target, waveform = RandomProjection(WAVE, 512, num_classes=64), sound(1)
    best = (target.frames(waveform) @ target.projection_CK @ target.codebook_VK.t()).topk(2).values[0]
    clear = best[:, 0] - best[:, 1] > 0.02  # where no rounding of another machine can choose otherwise
    expected = torch.tensor([
        51, 7, 7, 32, 44, 27, 27, 59, 30, 0, 9, 17, 19, 29, 62, 36, 2, 57, 57, 39, 27, 57, 58, 25, 45, 20, 55, 18, 41,
        43, 28, 46, 6, 12, 6, 29, 8, 23, 34, 47, 49, 40, 4, 14, 15, 32, 31, 47, 61,
    ])  # fmt: skip
    assert float(clear.float().mean()) > 0.8
    assert torch.equal(target(batch_of(waveform), WAVE)[0][clear], expected[clear])


def test_tables_are_uniform_within_xaviers_bound_and_of_unit_length() -> None:
    projection, codebook = random_tables(160, 16, 8192, seed=3)
    bound = (6 / 176) ** 0.5
    assert float(projection.abs().max()) <= bound
    assert float(projection.std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    torch.testing.assert_close(codebook.norm(dim=-1), torch.ones(8192))
    assert float(codebook.mean()) == pytest.approx(0, abs=0.005)


def test_tables_follow_from_their_seed_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = RandomProjection(WAVE, 512)
    torch.manual_seed(2)
    torch.rand(7)
    second, other = RandomProjection(WAVE, 512), RandomProjection(WAVE, 512, seed=1)
    assert torch.equal(first.projection_CK, second.projection_CK)
    assert torch.equal(first.codebook_VK, second.codebook_VK)
    assert not torch.equal(first.codebook_VK, other.codebook_VK)


def test_tables_are_saved_and_are_no_parameters() -> None:
    target = RandomProjection(WAVE, 512)
    assert not list(target.parameters())
    assert set(target.state_dict()) == {"projection_CK", "codebook_VK"}


def test_loudness_does_not_change_the_classes() -> None:
    target, waveform = RandomProjection(WAVE, 512, num_classes=64), sound(2)
    agreement = target(batch_of(waveform), WAVE) == target(batch_of(waveform * 0.25), WAVE)
    assert float(agreement.float().mean()) > 0.97


def test_many_codes_are_used_and_rows_do_not_meet() -> None:
    target, waveform = RandomProjection(WAVE, 512), sound(4)
    codes = target(batch_of(waveform), WAVE)
    assert len(codes.unique()) > 50
    alone = target(batch_of(waveform[1:2]), WAVE)
    assert float((alone == codes[1:2]).float().mean()) > 0.97


def test_autocast_and_gradients_leave_the_classes_alone() -> None:
    target, waveform = RandomProjection(WAVE, 512), sound(2).requires_grad_()
    codes = target(batch_of(waveform), WAVE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codes, target(batch_of(waveform), WAVE))
    assert not codes.requires_grad


def test_silence_has_finite_frames() -> None:
    assert RandomProjection(WAVE, 512).frames(torch.zeros(2, 16_000)).isfinite().all()


def test_a_hop_that_does_not_divide_the_stride_is_refused() -> None:
    with pytest.raises(ConfigError, match="hop_ms"):
        RandomProjection(WAVE, 512, hop_ms=15.0)


def test_another_clock_than_it_was_built_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="asked for"):
        RandomProjection(WAVE, 512)(batch_of(sound()), MEL)


def test_it_builds_on_the_meta_device_and_elsewhere_on_the_default_one() -> None:
    with torch.device("meta"):
        target = RandomProjection(WAVE, 512)
    assert {buffer.device.type for buffer in target.buffers()} == {"meta"}
    assert {buffer.device.type for buffer in RandomProjection(WAVE, 512).buffers()} == {"cpu"}


def test_classes_are_those_of_the_clean_speech_whatever_the_model_hears() -> None:
    target, waveform = RandomProjection(WAVE, 512, num_classes=64), sound(2)
    noisy = waveform + torch.randn(waveform.shape, generator=torch.Generator().manual_seed(0)) * 0.3
    expected = target(batch_of(waveform), WAVE)
    assert torch.equal(target(replace(batch_of(noisy), clean_BS=waveform), WAVE), expected)
    assert not torch.equal(target(batch_of(noisy), WAVE), expected)
