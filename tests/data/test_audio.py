import io
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from ossicle.core.errors import DataError, MissingExtraError
from ossicle.data.audio import RATE_HZ, decode, encode_flac, read_audio_file, to_pcm


def tone(rate_hz: int, seconds: float = 1.0, frequency_hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(rate_hz * seconds)) / rate_hz)


def write_g722(path: Path, pcm: np.ndarray) -> None:
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**32 - 1))
def test_flac_gives_back_every_sample(num_samples: int, seed: int) -> None:
    pcm = np.random.default_rng(seed).integers(-32768, 32768, num_samples, dtype=np.int16)
    np.testing.assert_array_equal(decode(encode_flac(pcm)) * 32768, pcm)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_crop_is_the_slice_of_the_whole(data: st.DataObject) -> None:
    pcm = np.random.default_rng(0).integers(-9000, 9000, 30_000, dtype=np.int16)
    start = data.draw(st.integers(0, 30_000))
    length = data.draw(st.integers(0, 30_000 - start))
    encoded = encode_flac(pcm)
    np.testing.assert_array_equal(decode(encoded, start, length) * 32768, pcm[start : start + length])
    np.testing.assert_array_equal(decode(encoded, start) * 32768, pcm[start:])


@pytest.mark.parametrize(("start", "length"), [(0, 101), (101, None), (-1, 5), (50, 51)])
def test_a_crop_outside_the_audio_is_refused(start: int, length: int | None) -> None:
    with pytest.raises(DataError, match="the audio has 100"):
        decode(encode_flac(np.zeros(100, np.int16)), start, length)


def test_damaged_bytes_are_refused() -> None:
    encoded = encode_flac(np.random.default_rng(0).integers(-9000, 9000, 60_000, dtype=np.int16))
    for damaged in (b"", b"no audio at all", encoded[: len(encoded) // 2]):
        with pytest.raises(DataError):
            decode(damaged)


def test_encoded_nan_is_refused() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.array([0.0, np.nan, 0.1]), RATE_HZ, format="WAV", subtype="FLOAT")
    with pytest.raises(DataError, match="1 samples that are NaN"):
        decode(file.getvalue())


def test_16_bit_mono_at_16_khz_is_read_to_the_bit(tmp_path: Path) -> None:
    pcm = np.random.default_rng(1).integers(-32768, 32768, 8000, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", pcm, RATE_HZ)
    np.testing.assert_array_equal(read_audio_file(tmp_path / "a.wav"), pcm)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_agrees_with_the_tone_and_with_scipy(tmp_path: Path, rate_hz: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate_hz), rate_hz, subtype="FLOAT")
    read = read_audio_file(tmp_path / "a.wav") / 32768
    common = int(np.gcd(rate_hz, RATE_HZ))
    peer = resample_poly(tone(rate_hz), RATE_HZ // common, rate_hz // common)
    inner = slice(1000, 15_000)
    assert abs(len(read) - RATE_HZ) <= 1
    np.testing.assert_allclose(read[inner], tone(RATE_HZ)[inner], atol=1e-4)
    np.testing.assert_allclose(read[inner], peer[inner], atol=2e-3)


def test_resampling_does_not_depend_on_what_memory_held_before() -> None:
    draw = np.random.default_rng(0)
    for num_samples in (132_326, 132_421, 198_603):  # lengths at which soxr's path for 16 bits does
        wave = draw.uniform(-0.5, 0.5, num_samples).astype(np.float32)
        results = set()
        for _ in range(8):
            junk = [np.full(int(draw.integers(100, 300_000)), value, np.float32) for value in (np.nan, 1e30, -7.0)]
            del junk
            results.add(to_pcm(wave, 22_050).tobytes())
        assert len(results) == 1


def test_what_is_too_loud_is_clipped() -> None:
    loud = np.array([-2.0, -1.0, 0.0, 1.0, 2.0], np.float32)
    np.testing.assert_array_equal(to_pcm(loud, RATE_HZ), [-32768, -32768, 0, 32767, 32767])


def test_channels_are_averaged_and_an_offset_is_kept(tmp_path: Path) -> None:
    stereo = np.stack([np.full(1000, 0.5), np.full(1000, -0.25)], axis=1)
    soundfile.write(tmp_path / "a.flac", stereo, RATE_HZ)
    np.testing.assert_array_equal(read_audio_file(tmp_path / "a.flac"), np.full(1000, 4096, np.int16))


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.OPUS", "a.flac", "a.WAV"])
def test_every_format_gives_the_tone(tmp_path: Path, name: str) -> None:
    kind = {"mp3": ("MP3", None), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS")}
    container, subtype = kind.get(name[2:].lower(), (name[2:].upper(), None))
    soundfile.write(tmp_path / name, tone(48_000), 48_000, format=container, subtype=subtype)
    read = read_audio_file(tmp_path / name)
    assert read.dtype == np.int16
    spectrum = np.abs(np.fft.rfft(read[2000:14_000] / 32768))
    assert abs(np.argmax(spectrum) * RATE_HZ / 12_000 - 440) < 2
    assert abs(np.sqrt(2 * np.mean((read[2000:14_000] / 32768) ** 2)) - 0.5) < 0.02


def test_g722_gives_the_tone(tmp_path: Path) -> None:
    write_g722(tmp_path / "a.G722", (tone(16_000) * 32767).astype(np.int16))
    read = read_audio_file(tmp_path / "a.G722") / 32768
    assert abs(len(read) - RATE_HZ) < 100
    assert abs(np.argmax(np.abs(np.fft.rfft(read[2000:14_000]))) * RATE_HZ / 12_000 - 440) < 2


def test_g722_without_its_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.g722").write_bytes(b"\0" * 1000)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"ossicle\[g722\]"):
        read_audio_file(tmp_path / "a.g722")


def test_every_bad_file_is_named_with_its_reason(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=20_000) * 0.1
    soundfile.write(tmp_path / "whole.flac", noise, RATE_HZ)
    whole = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.wav").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "text.wav").write_text("this was a text file", encoding="utf-8")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "empty.g722").write_bytes(b"")
    soundfile.write(tmp_path / "header.wav", np.zeros(0), RATE_HZ)
    soundfile.write(tmp_path / "one.wav", np.zeros(1), RATE_HZ)
    soundfile.write(tmp_path / "nan.wav", np.full(5000, np.nan), RATE_HZ, subtype="FLOAT")
    soundfile.write(tmp_path / "inf.wav", np.full(5000, np.inf), RATE_HZ, subtype="FLOAT")
    (tmp_path / "folder.wav").mkdir()
    reasons = {
        "cut.flac": "cut off|cannot be read as audio",
        "noise.wav": "cannot be read as audio",
        "text.wav": "cannot be read as audio",
        "empty.wav": "is an empty file",
        "empty.g722": "empty|cannot be read as G.722",
        "header.wav": "holds no samples",
        "one.wav": "holds 1 samples",
        "nan.wav": "5000 samples that are NaN",
        "inf.wav": "5000 samples that are NaN or infinite",
        "folder.wav": "cannot be read as audio",
        "absent.wav": "cannot be read as audio",
    }
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=reason) as caught:
            read_audio_file(tmp_path / name)
        assert name in caught.value.problem
